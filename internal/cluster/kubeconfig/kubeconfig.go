// Package kubeconfig writes the kubeconfig files of a cluster and merges one into a user's own file. It knows the file
// format only; it must not connect anywhere.
package kubeconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"syscall"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Config is one cluster seen by one user.
type Config struct {
	Name                  string // of the cluster, the user and the context
	Server                string // URL
	CA                    []byte // PEM
	ClientCert, ClientKey []byte // PEM
}

// ContextName is the name of a cluster, its user and its context in kubeconfig files.
func ContextName(cluster string) string { return "patchbay-" + cluster }

// Marshal gives the file's content.
func (c Config) Marshal() ([]byte, error) {
	return clientcmd.Write(*c.file())
}

func (c Config) file() *api.Config {
	file := api.NewConfig()
	file.Clusters[c.Name] = &api.Cluster{Server: c.Server, CertificateAuthorityData: c.CA}
	file.AuthInfos[c.Name] = &api.AuthInfo{ClientCertificateData: c.ClientCert, ClientKeyData: c.ClientKey}
	file.Contexts[c.Name] = &api.Context{Cluster: c.Name, AuthInfo: c.Name}
	file.CurrentContext = c.Name
	return file
}

// Read is the opposite of Marshal: it takes the current context of a file.
func Read(path string) (Config, error) {
	file, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return Config{}, err
	}
	context := file.Contexts[file.CurrentContext]
	if context == nil {
		return Config{}, fmt.Errorf("kubeconfig %s has no current context", path)
	}
	cluster, user := file.Clusters[context.Cluster], file.AuthInfos[context.AuthInfo]
	if cluster == nil || user == nil {
		return Config{}, fmt.Errorf("kubeconfig %s: context %q names a cluster or user that is not in the file", path, file.CurrentContext)
	}
	return Config{
		Name: file.CurrentContext, Server: cluster.Server, CA: cluster.CertificateAuthorityData,
		ClientCert: user.ClientCertificateData, ClientKey: user.ClientKeyData,
	}, nil
}

// UserFile is the file that the user's kubectl reads: the first of $KUBECONFIG, or .kube/config of the user who called sudo, or
// of the caller.
func UserFile() (string, error) {
	if list := filepath.SplitList(os.Getenv("KUBECONFIG")); len(list) > 0 && list[0] != "" {
		return list[0], nil
	}
	if caller, err := user.Lookup(os.Getenv("SUDO_USER")); err == nil {
		return filepath.Join(caller.HomeDir, ".kube", "config"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("cannot tell where the kubeconfig file is: %w; set KUBECONFIG", err)
	}
	return filepath.Join(home, ".kube", "config"), nil
}

// Merge adds or replaces c in the file at path and makes it the current context. Everything else in the file stays.
func Merge(path string, c Config) error {
	file, err := load(path)
	if err != nil {
		return err
	}
	added := c.file()
	file.Clusters[c.Name] = added.Clusters[c.Name]
	file.AuthInfos[c.Name] = added.AuthInfos[c.Name]
	file.Contexts[c.Name] = added.Contexts[c.Name]
	file.CurrentContext = c.Name
	return write(path, file)
}

// Remove takes the entries called name out of the file at path and tells whether there were any. A current context of that
// name is unset.
func Remove(path, name string) (bool, error) {
	file, err := load(path)
	if err != nil {
		return false, err
	}
	if _, ok := file.Contexts[name]; !ok {
		return false, nil
	}
	delete(file.Clusters, name)
	delete(file.AuthInfos, name)
	delete(file.Contexts, name)
	if file.CurrentContext == name {
		file.CurrentContext = ""
	}
	return true, write(path, file)
}

// write keeps the file, and the directories that have to be made for it, in the hands of the owner of the directory above.
func write(path string, file *api.Config) error {
	made := path
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(made); err == nil {
			return clientcmd.WriteToFile(*file, path)
		}
		if info, err := os.Stat(dir); err == nil {
			owner := info.Sys().(*syscall.Stat_t)
			return errors.Join(clientcmd.WriteToFile(*file, path), chownTree(made, int(owner.Uid), int(owner.Gid)))
		}
		made = dir
	}
}

func chownTree(root string, uid, gid int) error {
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
}

func load(path string) (*api.Config, error) {
	file, err := clientcmd.LoadFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return api.NewConfig(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; repair or move the file, then try again", path, err)
	}
	return file, nil
}
