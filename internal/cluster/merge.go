package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"patchbay/internal/cluster/kubeconfig"
	"patchbay/internal/cluster/layout"
)

// mergedFile lists the user's kubeconfig files that have the cluster, one a line, so that down can take it out again.
func mergedFile(c layout.Cluster) string { return filepath.Join(c.Run(), "merged-kubeconfigs") }

// MergeKubeconfig adds the cluster to the user's own kubeconfig file, makes it the current one and returns the file's name.
func MergeKubeconfig(c layout.Cluster) (string, error) {
	config, err := kubeconfig.Read(c.Kubeconfig())
	if err != nil {
		return "", err
	}
	path, err := kubeconfig.UserFile()
	if err != nil {
		return "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	if err := rememberMerged(c, path); err != nil {
		return "", err
	}
	return path, kubeconfig.Merge(path, config)
}

// rememberMerged comes before the merge: an entry too many does no harm.
func rememberMerged(c layout.Cluster, path string) error {
	known, err := mergedFiles(c)
	if err != nil {
		return err
	}
	for _, other := range known {
		if other == path {
			return nil
		}
	}
	return replaceFile(mergedFile(c), []byte(strings.Join(append(known, path), "\n")+"\n"), 0o644)
}

func mergedFiles(c layout.Cluster) ([]string, error) {
	data, err := os.ReadFile(mergedFile(c))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Split(strings.TrimRight(string(data), "\n"), "\n"), err
}

// unmergeKubeconfig takes the cluster out of the user's files.
func unmergeKubeconfig(c layout.Cluster) error {
	files, err := mergedFiles(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range files {
		if _, err := kubeconfig.Remove(path, kubeconfig.ContextName(c.Name)); err != nil {
			errs = append(errs, fmt.Errorf("take the cluster out of %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}
