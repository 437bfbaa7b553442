package tests

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
)

// newMessage returns a small message; more are further header lines.
func newMessage(subject string, more ...string) []byte {
	header := append([]string{
		"From: Ann <ann@example.org>",
		"To: list@example.net",
		"Subject: " + subject,
		"Date: Wed, 17 Jul 2024 02:23:25 -0700",
	}, more...)
	return []byte(strings.Join(header, "\r\n") + "\r\n\r\nThis is about " + subject + ".\r\n")
}

// messageOfSize returns a message of exactly size bytes, the same in each call.
func messageOfSize(size int, subject string) []byte {
	m := bytes.NewBuffer(newMessage(subject))
	line := "All work and no play makes Jack a dull boy. 0123456789\r\n"
	for m.Len() < size {
		m.WriteString(line)
	}
	cut := m.Bytes()[:size-2]
	if last := len(cut) - 1; cut[last] == '\r' { // RFC 5322 §2.2: no bare CR
		cut[last] = '.'
	}
	return append(cut, '\r', '\n')
}

// attachment returns a message with two parts. The second has more than size bytes of
// incompressible base64.
func attachment(size int) []byte {
	var m bytes.Buffer
	m.Grow(size + size/30 + 1<<12)
	m.Write(bytes.TrimSuffix(newMessage("the film",
		"MIME-Version: 1.0", `Content-Type: multipart/mixed; boundary="=-cut"`), []byte("This is about the film.\r\n")))
	m.WriteString("--=-cut\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nHere is the film.\r\n")
	m.WriteString("--=-cut\r\nContent-Type: application/octet-stream; name=film.bin\r\n" +
		"Content-Disposition: attachment; filename=film.bin\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	random := rand.NewChaCha8([32]byte([]byte("the same film at each projection")))
	row, line := make([]byte, 57), make([]byte, 76)
	for end := m.Len() + size; m.Len() < end; {
		_, _ = random.Read(row) // never fails
		base64.StdEncoding.Encode(line, row)
		m.Write(line)
		m.WriteString("\r\n")
	}
	m.WriteString("--=-cut--\r\n")
	return m.Bytes()
}

// threadMessage returns a message with references to others.
func threadMessage(n int, subject string, references ...string) []byte {
	more := []string{fmt.Sprintf("Message-ID: <%d@example.org>", n)}
	if len(references) > 0 {
		more = append(more, "References: "+strings.Join(references, " "), "In-Reply-To: "+references[len(references)-1])
	}
	m := newMessage(subject, more...)
	return bytes.Replace(m, []byte("17 Jul 2024 02"), fmt.Appendf(nil, "17 Jul 2024 %02d", 10+n), 1)
}
