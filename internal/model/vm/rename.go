package vm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"polder/api"
	"polder/internal/model"
)

// renameScript gives a system that runs a new identity. It starts as few programs as it can: each takes 50 ms and more where the
// processor is emulated.
//
//go:embed rename.sh
var renameScript string

// renamePatience is what that may take: it waits for nothing.
const renamePatience = 30 * time.Second

// rename tells the system inside who it is. Keys go by the environment, which only root can see inside.
func (m *Model) rename(ctx context.Context, ve model.Spec, before string) error {
	env, err := identityEnvironment()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, renamePatience)
	defer cancel()
	line := m.attached(ve).agent
	args := []string{"-c", renameScript, "polder", ve.Name, strings.ReplaceAll(ve.ID, "-", "")}
	for _, nic := range ve.NICs {
		args = append(args, nic.MAC)
	}
	err = line.replaceName(ctx, before, ve.Name)
	var pid int64
	if err == nil {
		pid, err = line.spawn(ctx, env, "/bin/sh", args...)
	}
	if err == nil {
		err = line.succeeds(ctx, pid)
	}
	if err != nil {
		return fmt.Errorf("tell the system inside who it is: %w", err)
	}
	return nil
}

// succeeds waits for the end of a program that the agent started.
func (l *agentLine) succeeds(ctx context.Context, pid int64) error {
	for {
		s, err := l.status(ctx, pid)
		if err != nil {
			return err
		}
		if s.Exited && s.Code == 0 && s.Signal == 0 {
			return nil
		}
		if s.Exited {
			text, _ := base64.StdEncoding.DecodeString(s.Stderr)
			return api.Errorf(api.Precondition, "exit %d: %s", s.Code, strings.TrimSpace(string(text)))
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
}

const hostsFile = "/etc/hosts"

// replaceName puts the new name in the place of the old one in /etc/hosts.
func (l *agentLine) replaceName(ctx context.Context, before, now string) error {
	handle, err := l.open(ctx, hostsFile, "r+")
	if err != nil {
		return unlessRefused(err) // it has none
	}
	content, err := l.read(ctx, handle, int(api.MiB))
	if err := errors.Join(err, l.closeFile(ctx, handle)); err != nil {
		return err
	}
	word := regexp.MustCompile(`(^|[\s.])` + regexp.QuoteMeta(before) + `($|[\s.])`)
	after := word.ReplaceAll(content, []byte("${1}"+now+"${2}"))
	if bytes.Equal(after, content) {
		return nil
	}
	if handle, err = l.open(ctx, hostsFile, "w"); err != nil {
		return err
	}
	return errors.Join(l.write(ctx, handle, after), l.closeFile(ctx, handle))
}

// identityEnvironment is what renameScript is told in secret.
func identityEnvironment() ([]string, error) {
	env := []string{guestPath, "RANDOM_SEED=" + rand.Text() + rand.Text() + rand.Text() + rand.Text()}
	for _, kind := range []string{"ed25519", "ecdsa"} {
		private, public, err := hostKey(kind)
		if err != nil {
			return nil, err
		}
		name := strings.ToUpper(kind)
		env = append(env, "KEY_"+name+"="+strings.TrimSpace(string(private)), "PUBLIC_"+name+"="+strings.TrimSpace(string(public)))
	}
	return env, nil
}

// hostKey makes an SSH host key, as ssh-keygen(1) writes it.
func hostKey(kind string) (private, public []byte, err error) {
	var key any
	if kind == "ed25519" {
		_, key, err = ed25519.GenerateKey(rand.Reader)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(block), ssh.MarshalAuthorizedKey(signer.PublicKey()), nil
}
