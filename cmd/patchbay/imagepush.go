package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"patchbay/internal/image"
)

func newImagePushCommand() *cobra.Command {
	var (
		plain  bool
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "push ARCHIVE [NAME]",
		Short: "Push an image archive to a registry, for clusters on other hosts",
		Long:  `Push an image archive to the registry that its name, or NAME, begins with. Credentials are those of your docker or podman login.`,
		Example: `  patchbay image push fedora.tar registry.example.com/team/fedora:40
  patchbay image push tiny.tar localhost:5000/tiny:1 --plain-http`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeArchives,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			scratch, err := os.MkdirTemp("", "patchbay-push-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(scratch)
			found, err := image.ReadArchive(args[0], scratch)
			if err != nil {
				return err
			}
			if len(args) == 2 {
				if found, err = rename(found, args[1]); err != nil {
					return err
				}
			}
			bar := newProgressBar(os.Stderr)
			defer bar.end()
			results := []image.Pushed{}
			for _, i := range found {
				pushed, err := image.Push(ctx, i, plain, func(done, total int64) { bar.show(i.Name, done, total) })
				if err != nil {
					return err
				}
				results = append(results, pushed)
			}
			bar.end()
			return output.print(cmd.OutOrStdout(), results, func(w io.Writer) {
				for _, r := range results {
					fmt.Fprintf(w, "pushed %s@%s\n", r.Name, r.Digest)
				}
			})
		},
	}
	output.addFlag(cmd)
	cmd.Flags().BoolVar(&plain, "plain-http", false, "talk to the registry without TLS")
	return cmd
}

func rename(images []image.Named, wanted string) ([]image.Named, error) {
	if len(images) != 1 {
		return nil, errors.New("the archive holds several images; push it without NAME")
	}
	name, err := image.ParseName(wanted)
	return []image.Named{{Name: name, Image: images[0].Image}}, err
}
