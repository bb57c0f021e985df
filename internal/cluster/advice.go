package cluster

import (
	"fmt"

	"polder/api"
)

// Advice says in a sentence or two what a cluster of these hosts does not survive, and what would help; "" when any one host
// may die.
func Advice(list []Status) string {
	runners, witnesses := 0, 0
	for _, s := range list {
		if s.Role == api.RoleWitness {
			witnesses++
		} else {
			runners++
		}
	}
	switch {
	case runners == 1 && witnesses == 0:
		return ""
	case len(list) == 2:
		return fmt.Sprintf("two hosts do not survive each other: %s keeps the only copy of the store, so when it dies, the VEs on the other one run on, but nothing can be started, moved or changed "+
			"until it is back; a third host, or a small machine with `polder serve --join TOKEN --witness` that only votes, makes that good", keeper(list))
	}
	return ""
}

// keeper names the only member.
func keeper(list []Status) string {
	for _, s := range list {
		if s.Role == api.RoleMember {
			return fmt.Sprintf("host %q", s.Name)
		}
	}
	return "one of them"
}
