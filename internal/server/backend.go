package server

import (
	"context"
	"io"

	"polder/api"
	"polder/internal/model"
)

// Backend is what the routes call. Package host implements it; errors carry api kinds.
type Backend interface {
	Launch(ctx context.Context, req api.LaunchRequest) (api.Operation, error)
	VEs(ctx context.Context) ([]api.VE, error) // sorted by name
	VE(ctx context.Context, name string) (api.VE, error)
	Start(ctx context.Context, name string) (api.Operation, error)
	Stop(ctx context.Context, name string, req api.StopRequest) (api.Operation, error)
	Restart(ctx context.Context, name string, req api.StopRequest) (api.Operation, error)
	Pause(ctx context.Context, name string) (api.Operation, error)
	Resume(ctx context.Context, name string) (api.Operation, error)
	Delete(ctx context.Context, name string) (api.Operation, error)
	Clone(ctx context.Context, name string, req api.CloneRequest) (api.Operation, error)
	Snapshots(ctx context.Context, name string) ([]api.Snapshot, error) // oldest first
	CreateSnapshot(ctx context.Context, name string, req api.SnapshotRequest) (api.Operation, error)
	RestoreSnapshot(ctx context.Context, name, snapshot string) (api.Operation, error)
	// ScheduleSnapshots ends a schedule with nil.
	ScheduleSnapshots(ctx context.Context, name string, s *api.SnapshotSchedule) (api.VE, error)
	Publish(ctx context.Context, name string, req api.PublishRequest) (api.Operation, error)
	DeleteSnapshot(ctx context.Context, name, snapshot string) (api.Operation, error)
	Move(ctx context.Context, name string, req api.MoveRequest) (api.Operation, error)
	// PlanMove says what Move would do; that it is not possible is no error.
	PlanMove(ctx context.Context, name string, req api.MoveRequest) (api.MovePlan, error)
	// Exec and Console block until the end; see model.Execer and model.Consoler.
	Exec(ctx context.Context, name string, req api.ExecRequest, s model.Streams) (int, error)
	Console(ctx context.Context, name string, s model.Streams) error
	// Logs writes the console log; with follow it goes on until ctx is done.
	Logs(ctx context.Context, name string, follow bool, w io.Writer) error

	Images(ctx context.Context) ([]api.Image, error)
	Image(ctx context.Context, ref string) (api.Image, error)
	BuildImage(ctx context.Context, req api.ImageBuildRequest) (api.Operation, error)
	// ImportImage reads body to its end before it returns; the operation then works on what was read.
	ImportImage(ctx context.Context, req api.ImageImportRequest, body io.Reader) (api.Operation, error)
	// ExportImage checks ref and format first: an error comes before the first byte.
	ExportImage(ctx context.Context, ref string, format api.ImageFormat, w io.Writer) error
	DeleteImage(ctx context.Context, ref string) (api.Operation, error)
	WarmImage(ctx context.Context, ref string, req api.WarmRequest) (api.Operation, error)
	Templates(ctx context.Context) ([]api.Template, error)

	Operations(ctx context.Context) ([]api.Operation, error) // newest first
	Operation(ctx context.Context, id string) (api.Operation, error)
	// WaitOperation blocks until the operation is final or ctx is done, calling each with every change (also the first
	// and the last state).
	WaitOperation(ctx context.Context, id string, each func(api.Operation)) (api.Operation, error)
	CancelOperation(ctx context.Context, id string) error
	// Events sends what happened after the event `after` (0: from now on) until ctx is done.
	Events(ctx context.Context, after int64, each func(api.Event) error) error

	Hosts(ctx context.Context) ([]api.Host, error)
	Host(ctx context.Context, name string) (api.Host, error)
	// JoinToken also opens a host that was alone for others: its server may then be cut off, right after the answer.
	JoinToken(ctx context.Context, req api.JoinTokenRequest) (api.JoinToken, error)
	// RemoveHost takes a host out of the cluster; with force also one that is alive or has VEs, whose records are deleted.
	RemoveHost(ctx context.Context, name string, force bool) (api.HostRemoval, error)
	Networks(ctx context.Context) ([]api.Network, error)
	ChangeNetwork(ctx context.Context, name string, change api.NetworkChange) (api.Network, error)
	Pools(ctx context.Context) ([]api.Pool, error)
	Volumes(ctx context.Context, pool string) ([]api.Volume, error)
	// Capabilities is what doctor shows for this host.
	Capabilities(ctx context.Context) ([]api.Capability, error)
}
