package intercept

import (
	"flag"
	"os"
	"testing"
)

// TestMain runs more tests at once than there are processors: they play in real
// time, and mostly wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
