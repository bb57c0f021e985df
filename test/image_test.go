//go:build scenario

package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"polder/api"
)

// application is what the test's application image says about how it is run. Its program tells what it was given, then
// serves until it gets the image's stop signal.
func application() v1.Config {
	return v1.Config{
		Entrypoint: []string{"/app"}, Cmd: []string{"one", "two words"}, Env: []string{"COLOUR=blue"},
		WorkingDir: "/data", User: "app", StopSignal: "SIGUSR1",
	}
}

const program = `#!/bin/sh
echo "args=$# $1|$2 colour=$COLOUR dir=$PWD user=$(id -un) group=$(id -gn)"
trap 'echo "asked to stop" >&2; echo stopped >stopped; exit 0' USR1
trap 'exit 7' HUP
while :; do sleep 0.1; done
`

// appLayout makes an OCI image layout with two layers from the host's static busybox, the second with a whiteout.
func appLayout(t *testing.T, config v1.Config) string {
	t.Helper()
	busybox := polder(t.Context(), "lab", "exec", "h1", "--", "cat", "/bin/busybox").out
	l := ociLayout{t: t, dir: t.TempDir(), config: v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: config}}
	l.layer(dirEntry("bin", 0), dirEntry("etc", 0), dirEntry("data", 1000), fileEntry("bin/busybox", busybox, 0o755),
		linkEntry("bin/sh"), linkEntry("bin/id"), linkEntry("bin/sleep"), linkEntry("bin/cat"), fileEntry("old", "of the first layer", 0o644))
	l.layer(fileEntry("app", program, 0o755), fileEntry(".wh.old", "", 0o644), fileEntry("etc/group", "root:x:0:\napp:x:1000:\n", 0o644),
		fileEntry("etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/data:/bin/sh\n", 0o644))
	return l.finish()
}

// ociLayout is an OCI image layout in the making.
type ociLayout struct {
	t        *testing.T
	dir      string
	config   v1.ConfigFile
	manifest v1.Manifest
}

func (l *ociLayout) layer(entries ...entry) {
	l.t.Helper()
	var packed bytes.Buffer
	plain := sha256.New()
	z := gzip.NewWriter(&packed)
	w := tar.NewWriter(io.MultiWriter(z, plain))
	for _, e := range entries {
		if err := w.WriteHeader(&e.header); err != nil {
			l.t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		l.t.Fatal(err)
	}
	l.config.RootFS.Type = "layers"
	l.config.RootFS.DiffIDs = append(l.config.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(plain.Sum(nil))})
	l.manifest.Layers = append(l.manifest.Layers, l.blob(types.OCILayer, packed.Bytes()))
}

func (l *ociLayout) finish() string {
	l.t.Helper()
	l.manifest.SchemaVersion, l.manifest.MediaType = 2, types.OCIManifestSchema1
	l.manifest.Config = l.document(types.OCIConfigJSON, l.config)
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{l.document(types.OCIManifestSchema1, l.manifest)}}
	text, err := json.Marshal(index)
	if err != nil {
		l.t.Fatal(err)
	}
	l.write("index.json", text)
	l.write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return l.dir
}

func (l *ociLayout) document(media types.MediaType, v any) v1.Descriptor {
	l.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(media, text)
}

func (l *ociLayout) blob(media types.MediaType, data []byte) v1.Descriptor {
	l.t.Helper()
	sum := sha256.Sum256(data)
	digest := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	l.write(filepath.Join("blobs/sha256", digest.Hex), data)
	return v1.Descriptor{MediaType: media, Size: int64(len(data)), Digest: digest}
}

func (l *ociLayout) write(name string, data []byte) {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

type entry struct {
	header tar.Header
	data   string
}

func fileEntry(name, data string, mode int64) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}, data}
}

func dirEntry(name string, owner int) entry {
	return entry{tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, Uid: owner, Gid: owner}, ""}
}

func linkEntry(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, ""}
}

// importImage makes an image that is deleted at the end of the test.
func importImage(t *testing.T, path, alias string) api.Image {
	t.Helper()
	must(t, "image", "import", path, alias)
	t.Cleanup(func() { polder(context.Background(), "image", "delete", alias) })
	return show[api.Image](t, "image", "info", alias)
}

// An OCI application image runs as it says: entry point, arguments, environment, directory, user and stop signal.
func TestApplicationImage(t *testing.T) {
	dir := appLayout(t, application())
	file := filepath.Join(t.TempDir(), "app.tar")
	if out, err := exec.Command("tar", "-C", dir, "-cf", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v %s", err, out)
	}
	image := importImage(t, dir, "app")
	if same := importImage(t, file, "app-tar"); same.Digest != image.Digest {
		t.Errorf("the same image has the digest %s as a directory and %s as a tar", image.Digest, same.Digest)
	}
	launch(t, "app", "app")
	eventually(t, 5*time.Second, func() string {
		if got, want := must(t, "logs", "app"), "args=2 one|two words colour=blue dir=/data user=app group=app"; got != want {
			return "it says " + got + ", want " + want
		}
		return ""
	})
	if got, want := must(t, "exec", "app", "--", "/bin/busybox", "sh", "-c", "echo $COLOUR; id -u; ls /old || :"), "blue\n0"; got != want {
		t.Errorf("exec says %q, want %q", got, want)
	}
	must(t, "stop", "app")
	if got := must(t, "logs", "app"); !strings.HasSuffix(got, "asked to stop") {
		t.Errorf("it was not stopped by its own signal; its log is %q", got)
	}
	must(t, "start", "app")
	if got := must(t, "exec", "app", "--", "cat", "/data/stopped"); got != "stopped" {
		t.Errorf("what it wrote at its stop is %q", got)
	}
	if v := show[api.VE](t, "info", "app"); v.Reason != "" || v.State != api.Running {
		t.Errorf("after stop and start it is %s, reason %q", v.State, v.Reason)
	}
	refused(t, 1, "without a kernel", "launch", "app", "appvm", "--model", "vm")
	refused(t, 3, "appvm", "info", "appvm")
}

// How an application ends decides, by the policy, whether it runs again; its exit code is told.
func TestApplicationEnds(t *testing.T) {
	config := v1.Config{Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"while [ ! -e /end ]; do sleep 0.1; done; read code </end; rm /end; exit $code"}}
	importImage(t, appLayout(t, config), "ends")
	for _, c := range []struct {
		name, policy, code string
		state              api.State
	}{
		{"ends1", "never", "3", api.Failed},
		{"ends2", "on-failure", "3", api.Running},
		{"ends3", "on-failure", "0", api.Stopped},
		{"ends4", "always", "0", api.Running},
	} {
		before := launch(t, "ends", c.name, "--restart", c.policy)
		polder(t.Context(), "exec", c.name, "--", "sh", "-c", "echo "+c.code+" >/new; /bin/busybox mv /new /end")
		eventually(t, 15*time.Second, func() string {
			v := show[api.VE](t, "info", c.name)
			if v.State != c.state || v.PID == before.PID || !strings.Contains(v.Reason, "exit status "+c.code) {
				return fmt.Sprintf("%s with restart %s is %s, pid %d, %q", c.name, c.policy, v.State, v.PID, v.Reason)
			}
			return ""
		})
	}
}

// An image is the same after a round trip where the format keeps all of it, and boots after any.
func TestExportImport(t *testing.T) {
	dir := t.TempDir()
	original := show[api.Image](t, "image", "info", "debian/13")
	export := func(ref, name string) string {
		path := filepath.Join(dir, name)
		must(t, "image", "export", ref, path)
		return path
	}
	// It is the same image, so it is not for this test to delete: that takes all its aliases.
	must(t, "image", "import", export("debian/13", "root.tar"), "trip/tar")
	if image := show[api.Image](t, "image", "info", "trip/tar"); image.Digest != original.Digest {
		t.Errorf("a tar came back as %s, was %s", image.Digest, original.Digest)
	}
	importImage(t, export("debian/13", "root.squashfs"), "trip/squashfs")
	launch(t, "trip/squashfs", "trip")
	booted(t, "trip", time.Minute)

	app := importImage(t, appLayout(t, application()), "trip/app")
	must(t, "image", "export", "trip/app", "--format", "oci", filepath.Join(dir, "app.oci"))
	again := importImage(t, filepath.Join(dir, "app.oci"), "trip/again")
	if again.Config == nil || app.Config == nil || !reflect.DeepEqual(again.Config, app.Config) {
		t.Errorf("an application came back with %+v, was %+v", again.Config, app.Config)
	}
	launch(t, "trip/again", "trip-app")
	eventually(t, 5*time.Second, func() string {
		if got := must(t, "logs", "trip-app"); !strings.HasPrefix(got, "args=2 one|two words colour=blue dir=/data user=app") {
			return "it says " + got
		}
		return ""
	})
	refused(t, 4, "exists", "image", "export", "trip/app", filepath.Join(dir, "app.oci"), "--format", "oci")
	refused(t, 1, "no disk", "image", "export", "trip/app", filepath.Join(dir, "app.qcow2"))
}

// An alias is not taken over by an import, and an image stays as long as a VE needs it.
func TestImageInUse(t *testing.T) {
	config := application()
	image := importImage(t, appLayout(t, config), "used")
	config.Cmd = []string{"other"}
	if r := polder(t.Context(), "image", "import", appLayout(t, config), "used"); r.code != 4 || !strings.Contains(r.err, "taken") {
		t.Errorf("an import to an alias that is taken: %+v", r)
	}
	launch(t, "used", "user")
	if v := show[api.VE](t, "info", "user"); v.ImageDigest != image.Digest {
		t.Errorf("the VE is of %s, want %s", v.ImageDigest, image.Digest)
	}
	refused(t, 4, "user", "image", "delete", "used")
	must(t, "delete", "user")
	must(t, "image", "delete", "used")
	refused(t, 3, "not found", "image", "info", image.Digest)
}

// A suite whose keys are not there is refused before anything is made.
func TestSuiteWithoutKeys(t *testing.T) {
	before := remains(t)
	refused(t, 4, "ubuntu-archive-keyring", "image", "build", "ubuntu/24.04")
	refused(t, 2, "", "image", "build", "nosuch/1")
	if after := remains(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}
