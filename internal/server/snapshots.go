package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

type snapshotInput struct {
	Name     string `path:"name" doc:"name of the VE"`
	Snapshot string `path:"snapshot" doc:"name of the snapshot"`
}

type takeInput struct {
	Name string `path:"name" doc:"name of the VE"`
	Body *api.SnapshotRequest
}

type scheduleInput struct {
	Name string `path:"name" doc:"name of the VE"`
	Body api.SnapshotSchedule
}

type publishInput struct {
	Name string `path:"name" doc:"name of the VE"`
	Body api.PublishRequest
}

func (s *Server) routeSnapshots() {
	const all, one = "/ves/{name}/snapshots", "/ves/{name}/snapshots/{snapshot}"
	huma.Register(s.api, s.operation(http.MethodGet, all, "list-snapshots", tagVE, "List a VE's snapshots, oldest first"),
		func(ctx context.Context, in *veInput) (*out[[]api.Snapshot], error) {
			snapshots, err := s.backend.Snapshots(ctx, in.Name)
			return answer(list(snapshots), err)
		})
	const schedule = "/ves/{name}/snapshot-schedule"
	huma.Register(s.api, s.operation(http.MethodPut, schedule, "schedule-snapshots", tagVE, "Have snapshots of a VE taken by themselves"),
		func(ctx context.Context, in *scheduleInput) (*out[api.VE], error) {
			return answer(s.backend.ScheduleSnapshots(ctx, in.Name, &in.Body))
		})
	huma.Register(s.api, s.operation(http.MethodDelete, schedule, "unschedule-snapshots", tagVE, "Take no more snapshots of a VE by themselves"),
		func(ctx context.Context, in *veInput) (*out[api.VE], error) {
			return answer(s.backend.ScheduleSnapshots(ctx, in.Name, nil))
		})
	publish := s.starts(http.MethodPost, "/ves/{name}/publish", "publish-ve", tagVE, "Make an image of a stopped VE, or of a snapshot")
	publish.Description = "The operation's result is an Image."
	huma.Register(s.api, publish, func(ctx context.Context, in *publishInput) (*started, error) {
		return start(s.backend.Publish(ctx, in.Name, in.Body))
	})
	take := s.starts(http.MethodPost, all, "create-snapshot", tagVE, "Take a snapshot of a VE")
	take.Description = "The operation's result is a Snapshot."
	huma.Register(s.api, take, func(ctx context.Context, in *takeInput) (*started, error) {
		var req api.SnapshotRequest
		if in.Body != nil {
			req = *in.Body
		}
		if req.Name != "" {
			if err := api.CheckName("snapshot", req.Name); err != nil {
				return nil, failure(err)
			}
		}
		return start(s.backend.CreateSnapshot(ctx, in.Name, req))
	})
	huma.Register(s.api, s.starts(http.MethodPost, one+"/restore", "restore-snapshot", tagVE, "Make a VE what it was when a snapshot was taken"),
		func(ctx context.Context, in *snapshotInput) (*started, error) {
			return start(s.backend.RestoreSnapshot(ctx, in.Name, in.Snapshot))
		})
	huma.Register(s.api, s.starts(http.MethodDelete, one, "delete-snapshot", tagVE, "Delete a snapshot"),
		func(ctx context.Context, in *snapshotInput) (*started, error) {
			return start(s.backend.DeleteSnapshot(ctx, in.Name, in.Snapshot))
		})
}
