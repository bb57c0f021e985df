package vm

import (
	"path/filepath"

	"polder/internal/model"
)

var _ model.Carrier = (*Model)(nil)

// Carried implements model.Carrier: the hardware that was settled for the VE, the firmware's variables, the console's log.
func (m *Model) Carried(ve model.Spec) []string {
	return []string{"machine.json", filepath.Base(varsFile(ve)), filepath.Base(ve.LogPath())}
}
