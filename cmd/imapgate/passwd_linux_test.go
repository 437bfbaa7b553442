package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal gives both ends of a pseudo terminal.
func terminal(t testing.TB) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo terminals here: ", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip("no pseudo terminals here: ", err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

func TestATerminalIsAskedTwiceWithoutEcho(t *testing.T) {
	for name, test := range map[string]struct {
		typed  string
		status int
	}{
		"same":      {"right horse\nright horse\n", 0},
		"different": {"right horse\nright hearse\n", 1},
	} {
		t.Run(name, func(t *testing.T) {
			person, program := terminal(t)
			root := newRoot()
			var out, prompts screen
			root.SetArgs([]string{"passwd", "--scheme", "plain"})
			root.SetIn(program)
			root.SetOut(&out)
			root.SetErr(&prompts)
			ended := make(chan int, 1)
			go func() { ended <- run(t.Context(), root) }()

			// Typed only after the prompt: the echo is off by then.
			first, second, _ := strings.Cut(test.typed, "\n")
			prompts.await(t, "Password: ")
			awaitNoEcho(t, program)
			if _, err := io.WriteString(person, first+"\n"); err != nil {
				t.Fatal(err)
			}
			prompts.await(t, "Again: ")
			awaitNoEcho(t, program)
			if _, err := io.WriteString(person, second); err != nil {
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

// awaitNoEcho waits until what is typed is not shown.
func awaitNoEcho(t testing.TB, program *os.File) {
	t.Helper()
	eventually(t, func() bool {
		state, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
		return err == nil && state.Lflag&unix.ECHO == 0
	}, func() string { return "the terminal still echoes" })
}
