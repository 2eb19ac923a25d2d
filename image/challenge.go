package image

import (
	"net/http"
	"strings"
)

// challenge is an authentication challenge of a server (RFC 9110, section 11.6.1).
type challenge struct {
	scheme string            // lower case
	params map[string]string // names in lower case
}

// challenges parses the WWW-Authenticate headers of a response; one header may have several challenges.
func challenges(h http.Header) []challenge {
	var out []challenge
	for _, text := range h.Values("WWW-Authenticate") {
		out = append(out, parseChallenges(text)...)
	}
	return out
}

func parseChallenges(text string) []challenge {
	var out []challenge
	p := challengeParser{text}
	for {
		p.skip(" \t,")
		word := p.token()
		if word == "" {
			return out
		}
		p.skip(" \t")
		if len(out) > 0 && p.take('=') {
			p.skip(" \t")
			value, ok := p.value()
			if !ok {
				return out
			}
			out[len(out)-1].params[strings.ToLower(word)] = value
			continue
		}
		out = append(out, challenge{strings.ToLower(word), map[string]string{}})
	}
}

// challengeParser parses a header; rest is what is left of it.
type challengeParser struct{ rest string }

func (p *challengeParser) skip(set string) { p.rest = strings.TrimLeft(p.rest, set) }

func (p *challengeParser) take(c byte) bool {
	if p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// token parses a token and stops after it. An unquoted URL is not a token.
func (p *challengeParser) token() string {
	n := strings.IndexFunc(p.rest, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if n < 0 {
		n = len(p.rest)
	}
	word := p.rest[:n]
	p.rest = p.rest[n:]
	return word
}

// value parses a token or a quoted string.
func (p *challengeParser) value() (string, bool) {
	if !p.take('"') {
		v := p.token()
		return v, v != ""
	}
	var b strings.Builder
	for i := 0; i < len(p.rest); i++ {
		switch c := p.rest[i]; c {
		case '"':
			p.rest = p.rest[i+1:]
			return b.String(), true
		case '\\':
			if i++; i < len(p.rest) {
				b.WriteByte(p.rest[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	p.rest = ""
	return "", false
}

// choose returns the challenge to answer: bearer before basic, as the password is then sent to the token server only.
func choose(list []challenge) (challenge, bool) {
	for _, scheme := range []string{"bearer", "basic"} {
		for _, c := range list {
			if c.scheme == scheme {
				return c, true
			}
		}
	}
	return challenge{}, false
}
