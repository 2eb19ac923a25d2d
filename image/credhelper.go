package image

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
	"unicode"

	"github.com/stratavm/strata/internal/plaintext"
)

const (
	helperTime  = time.Minute // it may prompt the user
	maxHelper   = 1 << 20     // maximum size of its output, in bytes
	noneInStore = "credentials not found in native keychain"
)

// askHelper runs docker-credential-NAME. The server name is written to its standard input, and its standard output is
// JSON. (The client package of docker-credential-helpers has neither a timeout nor a limit on the output.)
func askHelper(ctx context.Context, name, server string) (Credentials, error) {
	program := "docker-credential-" + name
	fail := func(err error) (Credentials, error) {
		return Credentials{}, fmt.Errorf("credential helper %s: %w", program, err)
	}
	if strings.ContainsAny(name, `/\`) {
		return fail(fmt.Errorf("%w: use the name of a helper, not a path", ErrInvalid))
	}
	ctx, cancel := context.WithTimeout(ctx, helperTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(server)
	out, errOut := plaintext.NewHead(maxHelper), plaintext.NewHead(4096)
	cmd.Stdout, cmd.Stderr = out, errOut
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(out.String() + " " + errOut.String())
		if strings.Contains(text, noneInStore) {
			return Credentials{}, nil
		}
		if text != "" {
			err = fmt.Errorf("%w: %s", err, oneLine(text))
		}
		return fail(err)
	}
	var got struct{ Username, Secret string }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		return fail(fmt.Errorf("its output is no JSON object")) // do not show it: it may contain a secret
	}
	if got.Username == "<token>" {
		return Credentials{IdentityToken: got.Secret}, nil
	}
	return Credentials{Username: got.Username, Password: got.Secret}, nil
}

// oneLine sanitizes untrusted text for a message: one line, short, without control characters.
func oneLine(s string) string {
	const most = 300
	// Also remove characters that change the text direction.
	bad := func(r rune) bool {
		return r <= ' ' || r >= 0x7f && r <= 0xa0 || r == '\ufffd' || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
	}
	s = strings.Join(strings.FieldsFunc(s, bad), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
