package testbed

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
)

// asked names, in a child's environment, what it is to be.
const asked = "SHIM_TEST_CHILD"

// StartChild runs the test program again as a server in a process of its own,
// until the test ends, and returns the address or URL that it says. What it is
// comes from the package's own TestChild, which calls BeChild.
func StartChild(tb testing.TB, what string) (addr string) {
	tb.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestChild$")
	cmd.Env = append(os.Environ(), asked+"="+what)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait() // a race in the server makes it a failed test there
	})
	if _, err := fmt.Fscan(out, &addr); err != nil {
		tb.Fatalf("child %q: %v", what, err)
	}
	return addr
}

// BeChild is the whole of a package's TestChild. start starts the server that
// StartChild asked for, which ends with the test, and returns where it is.
func BeChild(t *testing.T, start func(t *testing.T, what string) (addr string)) {
	t.Helper()
	what, is := os.LookupEnv(asked)
	if !is {
		return // nobody asked: part of the ordinary tests
	}
	fmt.Println(start(t, what))
	_, _ = io.Copy(io.Discard, os.Stdin)
}
