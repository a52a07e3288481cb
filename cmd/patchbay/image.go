package main

import (
	"github.com/spf13/cobra"
)

func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make images of disks and directories, and bring them into a local cluster or a registry",
		Long: `Virtual machines start from images: a disk in an image is a containerDisk. These commands make such images without a container
engine and load them into the nodes of a local cluster without a registry.`,
		Example: `  patchbay image build fedora.qcow2 -t patchbay.io/mine/fedora:40
  sudo patchbay image load fedora.tar
  sudo patchbay image list`,
	}
	cmd.AddCommand(newImageBuildCommand(), newImageLoadCommand(), newImageListCommand(), newImagePushCommand())
	return cmd
}
