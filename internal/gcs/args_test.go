package gcs

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm"
)

func TestCheckArguments(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, tc := range []struct {
		name      string
		args, env []string
		want      string // "": accepted
	}{
		{"usual", []string{"sh", "-c", "ä"}, []string{"A=b"}, ""},
		{"largest argument", []string{"sh", x(MaxArgument - 1)}, nil, ""},
		{"argument", []string{"sh", x(MaxArgument)}, nil, "argument 1 has 131072 bytes"},
		{"variable", []string{"sh"}, []string{"BIG=" + x(MaxArgument-4)}, `variable "BIG" has 131072 bytes`},
		{"all", []string{"sh"}, slices.Repeat([]string{x(100_000)}, 21), "all together"},
		{"nearly all", []string{"sh"}, slices.Repeat([]string{x(100_000)}, 20), ""},
		{"many small ones", slices.Repeat([]string{"a"}, 210_000), nil, "all together"},
		{"zero byte", []string{"a\x00b"}, nil, "value zero"},
		{"bytes", nil, []string{"A=\xff"}, "not UTF-8"},
	} {
		err := CheckArguments(tc.args, tc.env)
		if (err == nil) != (tc.want == "") || err != nil &&
			(!errors.Is(err, ErrArguments) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// TestLargestRequestHoldsArguments: whatever fits Linux fits the largest request, however JSON writes it.
func TestLargestRequestHoldsArguments(t *testing.T) {
	for _, content := range []string{"x", `"`, `\`, "\x01", "<", "ä", "\u2028", "\n"} {
		args := []string{"sh"}
		for CheckArguments(append(args, strings.Repeat(content, 60_000/len(content))), nil) == nil {
			args = append(args, strings.Repeat(content, 60_000/len(content)))
		}
		text, err := EncodeText(&ProcessParameters{OciProcess: ociProcess(&vmm.ProcessSpec{Args: args})})
		if err != nil {
			t.Fatal(err)
		}
		req := &ExecuteRequest{Settings: ExecuteSettings{ProcessParameters: text}}
		if _, err := EncodeMessage(Header{Type: TypeExecuteProcess}, req, LargestMaxMessage); err != nil {
			t.Errorf("arguments of %q: %v", content, err)
		}
	}
}
