package launcher_test

import (
	"os"
	"testing"

	"patchbay/internal/launcher/launchertest"
)

func TestMain(m *testing.M) { os.Exit(launchertest.Main(m)) }
