package main

import (
	"fmt"
	"imapgate/internal/testkit"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a pseudo terminal.
func openTerminal(t testing.TB) (ptmx, tty *os.File) {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo terminals here: ", err)
	}
	t.Cleanup(func() { ptmx.Close() })
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip("no pseudo terminals here: ", err)
	}
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return ptmx, tty
}

func TestPasswdPromptsTwiceWithoutEcho(t *testing.T) {
	for name, test := range map[string]struct {
		typed  string
		status int
	}{
		"same":      {"right horse\nright horse\n", 0},
		"different": {"right horse\nright hearse\n", 1},
	} {
		t.Run(name, func(t *testing.T) {
			ptmx, tty := openTerminal(t)
			root := newRoot()
			var out, prompts outputBuffer
			root.SetArgs([]string{"passwd", "--scheme", "plain"})
			root.SetIn(tty)
			root.SetOut(&out)
			root.SetErr(&prompts)
			ended := make(chan int, 1)
			go func() { ended <- run(t.Context(), root) }()

			// Typed only after the prompt, when the echo is off.
			first, second, _ := strings.Cut(test.typed, "\n")
			prompts.awaitMatch(t, "Password: ")
			awaitNoEcho(t, tty)
			if _, err := io.WriteString(ptmx, first+"\n"); err != nil {
				t.Fatal(err)
			}
			prompts.awaitMatch(t, "Again: ")
			awaitNoEcho(t, tty)
			if _, err := io.WriteString(ptmx, second); err != nil {
				t.Fatal(err)
			}
			if got := <-ended; got != test.status {
				t.Errorf("status %d: %s", got, prompts.String())
			}
			if hashed := out.String() == "{PLAIN}right horse\n"; hashed != (test.status == 0) {
				t.Errorf("printed %q", out.String())
			}
		})
	}
}

// awaitNoEcho waits until the terminal's echo is off.
func awaitNoEcho(t testing.TB, tty *os.File) {
	t.Helper()
	testkit.Eventually(t, "the terminal to stop its echo", func() bool {
		state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		return err == nil && state.Lflag&unix.ECHO == 0
	})
}
