//go:build scenario

package test

import (
	"context"
	"slices"
	"testing"
	"time"

	"polder/api"
)

// An image of a container has what was put there and nothing that the container is known by; what is asked amiss leaves nothing behind.
func TestPublish(t *testing.T) {
	const name = "author"
	launch(t, "debian/13", name)
	booted(t, name, time.Minute)
	refused(t, 4, "stop it, or", "image", "publish", name, "books/1")
	refused(t, 3, "no snapshot", "image", "publish", name, "books/1", "--snapshot", "nope")
	refused(t, 3, "no such VE", "image", "publish", "nobody", "books/1")
	ready := snapshotNow(t, name)
	refused(t, 2, "alias", "image", "publish", name, "Books", "--snapshot", ready)
	refused(t, 4, "taken", "image", "publish", name, "debian/13", "--snapshot", ready)
	publishes(t, name, "books/1")
	must(t, "stop", name)
	img := show[api.Image](t, "image", "publish", name, "books/1", "--replace", "--description", "with a book")
	if img.Description != "with a book" || img.Provenance.Source != "ve author, of debian/13" || !slices.Equal(img.Models, []api.Model{api.Container, api.VM}) || img.DiskBytes == 0 {
		t.Errorf("%+v", img)
	}

	// The daemon is killed in the middle: it is carried on.
	must(t, "start", name)
	must(t, "exec", name, "--", "sh", "-c", "echo more >/root/more")
	must(t, "stop", name)
	host := show[api.VE](t, "info", name).Host
	id := must(t, "image", "publish", name, "books/2", "--no-wait")
	underWay(t, "image.publish", "tree")
	refused(t, 4, "busy", "start", name)
	must(t, "lab", "exec", host, "--", "pkill", "-9", "-f", "^polder serve")
	if op := ended(t, id); op.State != api.OperationDone {
		t.Errorf("after all it is %s: %+v", op.State, op.Error)
	}
	must(t, "image", "delete", "books/2")
	id = must(t, "image", "publish", name, "books/3", "--no-wait")
	underWay(t, "image.publish", "disk")
	must(t, "op", "cancel", id)
	if op := ended(t, id); op.State != api.OperationCancelled {
		t.Errorf("cancelled it is %s: %+v", op.State, op.Error)
	}
	left := must(t, "lab", "exec", host, "--", "sh", "-c", `ls /var/lib/polder/pools/default/volumes | grep publish-; ls /var/lib/polder/staging; mount | grep fuse2fs; pgrep -a fuse2fs; true`)
	if left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// snapshotNow takes a snapshot that is deleted with its VE.
func snapshotNow(t *testing.T, name string) string {
	t.Helper()
	return show[api.Snapshot](t, "snapshot", "create", name).Name
}

// publishes makes an image of a VE that runs, by a snapshot, and a container of that: it has the VE's files and an identity of its own.
func publishes(t *testing.T, name, alias string) {
	t.Helper()
	before := identities(t, name)
	must(t, "exec", name, "--", "sh", "-ec", "echo written >/root/book; chown 1234:4321 /root/book; ln -s book /root/link; echo gone >/run/gone; sync")
	must(t, "image", "publish", name, alias, "--snapshot", snapshotNow(t, name))
	t.Cleanup(func() { polder(context.Background(), "image", "delete", alias) })
	reader := name + "-reader"
	launch(t, alias, reader)
	booted(t, reader, time.Minute)
	if got := must(t, "exec", reader, "--", "sh", "-c", "cat /root/link; stat -c %u:%g /root/book; ls /run/gone 2>&1 | grep -c 'No such'"); got != "written\n1234:4321\n1" {
		t.Errorf("in a VE of the image there is %q", got)
	}
	allDiffer(t, map[string][]string{name: before[name], reader: identities(t, reader)[reader]})
}
