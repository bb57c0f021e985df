package model

import "polder/api"

// Event is something that is asked of a VE or has happened to it. The set is closed.
type Event string

// The events. Start, Stop, Pause and Resume are asked for; Started, Exited and Crashed are what was seen.
const (
	Start   Event = "start"
	Started Event = "started" // its first process runs
	Stop    Event = "stop"
	Exited  Event = "exited"  // it halted in order, or was made to
	Crashed Event = "crashed" // it ended unasked
	Pause   Event = "pause"
	Resume  Event = "resume"
)

// Events lists them all.
func Events() []Event { return []Event{Start, Started, Stop, Exited, Crashed, Pause, Resume} }

// States lists all states of a VE.
func States() []api.State {
	return []api.State{api.Stopped, api.Starting, api.Running, api.Paused, api.Stopping, api.Failed}
}

// transitions is the table in Next's comment, without its empty fields.
var transitions = map[api.State]map[Event]api.State{
	api.Stopped:  {Start: api.Starting},
	api.Starting: {Started: api.Running, Stop: api.Stopping, Exited: api.Stopped, Crashed: api.Failed},
	api.Running:  {Stop: api.Stopping, Exited: api.Stopped, Crashed: api.Failed, Pause: api.Paused},
	api.Paused:   {Stop: api.Stopping, Exited: api.Stopped, Crashed: api.Failed, Resume: api.Running},
	api.Stopping: {Exited: api.Stopped, Crashed: api.Stopped},
	api.Failed:   {Start: api.Starting, Stop: api.Stopping},
}

// Next gives the state that follows. It is pure: it looks at nothing else and does nothing. An event that the state does
// not allow is an error of kind Precondition that says what to do, and leaves the state as it is.
//
//	state     | start    | started | stop     | exited  | crashed | pause  | resume
//	stopped   | starting |         |          |         |         |        |
//	starting  |          | running | stopping | stopped | failed  |        |
//	running   |          |         | stopping | stopped | failed  | paused |
//	paused    |          |         | stopping | stopped | failed  |        | running
//	stopping  |          |         |          | stopped | stopped |        |
//	failed    | starting |         | stopping |         |         |        |
//
// A VE that crashes while it is being stopped is as stopped as was asked for. Stopping a failed VE tidies up after it.
func Next(state api.State, event Event) (api.State, error) {
	if next, ok := transitions[state][event]; ok {
		return next, nil
	}
	return state, refusal(state, event)
}

// refusal explains why the state does not allow the event.
func refusal(state api.State, event Event) error {
	if _, known := transitions[state]; !known {
		return api.Errorf(api.Internal, "ve has the unknown state %q", state)
	}
	switch event {
	case Start, Stop, Pause, Resume:
	case Started, Exited, Crashed:
		return api.Errorf(api.Precondition, "ve is %s: it cannot have %s", state, event)
	default:
		return api.Errorf(api.Internal, "unknown event %q for a ve that is %s", event, state)
	}
	if asked := map[Event]api.State{Start: api.Running, Stop: api.Stopped, Pause: api.Paused, Resume: api.Running}; asked[event] == state {
		return api.Errorf(api.Precondition, "ve is %s already", state)
	}
	return api.Errorf(api.Precondition, "ve is %s: %s", state, remedy(state))
}

// remedy says what to do first with a VE that is in the way of a request.
func remedy(state api.State) string {
	switch state {
	case api.Stopped, api.Failed:
		return "start it first"
	case api.Starting:
		return "wait until it runs"
	case api.Stopping:
		return "wait until it is stopped"
	case api.Paused:
		return "resume it first"
	default:
		return "stop it first"
	}
}
