package crds_test

import (
	"context"
	"os"
	"testing"
	"time"

	"patchbay/api/crds"
	"patchbay/test/apiserver"
)

var server *apiserver.Server

func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &server)) }

func applied(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	if err := crds.Apply(ctx, server.Config); err != nil {
		t.Fatal(err)
	}
	return ctx
}

func TestApplyTwice(t *testing.T) {
	applied(t)
	applied(t)
}
