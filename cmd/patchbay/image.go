package main

import (
	"github.com/spf13/cobra"
)

func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make images of disks and directories, and bring them into a local cluster or a registry",
	}
	cmd.AddCommand(newImageBuildCommand(), newImageLoadCommand(), newImageListCommand(), newImagePushCommand())
	return cmd
}
