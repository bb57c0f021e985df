//go:build !integration

package cluster

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain is not for the integration tests: etcd leaves goroutines behind when a member is stopped while others talk with it.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
