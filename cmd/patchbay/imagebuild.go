package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"patchbay/internal/image"
)

// built is the result of image build.
type built struct {
	Name    string `json:"name"`
	Archive string `json:"archive"`
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
}

func newImageBuildCommand() *cobra.Command {
	var (
		tag    string
		file   string
		config image.Config
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "build DISK|DIRECTORY -t NAME",
		Short: "Make an image archive of a virtual machine's disk or of a directory",
		Long: `Make an image archive. No container engine is needed.

A disk (qcow2, or .img, .raw, .iso) becomes a containerDisk. A directory becomes the root of the image; if it has a
directory "disk", that belongs to the user that QEMU runs as. The same input makes the same image, bit for bit.`,
		Example: `  patchbay image build fedora.qcow2 -t patchbay.io/mine/fedora:40
  patchbay image load fedora.tar`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := image.ParseName(tag)
			if err != nil {
				return err
			}
			if file == "" {
				file = archiveFor(name)
			}
			result, err := buildImage(args[0], name, file, config)
			if err != nil {
				return err
			}
			return output.print(cmd.OutOrStdout(), result, func(w io.Writer) {
				fmt.Fprintf(w, "%s  %s  %s\nLoad it with:  patchbay image load %s\n", result.Name, result.Archive, megabytes(result.Size), result.Archive)
			})
		},
	}
	flags := cmd.Flags()
	output.addFlag(cmd)
	flags.StringVarP(&tag, "tag", "t", "", "name of the image, such as patchbay.io/mine/web:1")
	flags.StringVarP(&file, "file", "f", "", "archive to write (default: the last part of the name, with .tar)")
	flags.StringArrayVar(&config.Entrypoint, "entrypoint", nil, "program that a container of the image starts; once for each word")
	flags.StringArrayVar(&config.Cmd, "cmd", nil, "arguments of the program; once for each word")
	flags.StringVar(&config.User, "user", "", "user that it runs as")
	cobra.CheckErr(cmd.MarkFlagRequired("tag"))
	return cmd
}

// archiveFor names the archive after the image: patchbay.io/mine/web:1 -> web.tar.
func archiveFor(name string) string {
	base, _, _ := strings.Cut(path.Base(name), ":")
	return base + ".tar"
}

func buildImage(source, name, file string, config image.Config) (built, error) {
	tree, err := image.FromPath(source)
	if err != nil {
		return built{}, err
	}
	bar := newProgressBar(os.Stderr)
	defer bar.end()
	bar.show("reading "+source, 0, 1)
	img, err := image.Assemble(config, tree)
	if err != nil {
		return built{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return built{}, err
	}
	total, err := image.Size(img)
	if err != nil {
		return built{}, err
	}
	var done int64
	err = image.WriteArchive(file, image.Named{Name: name, Image: img}, func(n int) {
		done += int64(n)
		bar.show("writing "+file, done, total)
	})
	return built{Name: name, Archive: file, Digest: digest.String(), Size: total}, err
}
