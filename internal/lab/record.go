package lab

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"polder/api"
)

const (
	recordFile    = "lab.json"
	recordVersion = 1
)

// record is what a lab has to remember of choices that depend on what the machine was like when it was made.
type record struct {
	Version int          `json:"version"`
	Backend Backend      `json:"backend,omitempty"` // "": Namespaces
	Subnet  netip.Prefix `json:"subnet"`
	Subnet6 netip.Prefix `json:"subnet6"`
	// Cluster says that the hosts are to be one; Sites, over how many sites they are spread (0: no site is named).
	Cluster bool `json:"cluster,omitempty"`
	Sites   int  `json:"sites,omitempty"`
	// Controllers were switched on for the children of the machine's root cgroup, and are switched off at the end.
	Controllers []string `json:"controllers,omitempty"`
	// Shapes are the cables that are not plain, by host; Cuts the pairs of hosts that don't hear each other.
	Shapes map[string]Shape `json:"shapes,omitempty"`
	Cuts   [][2]string      `json:"cuts,omitempty"`
}

// readRecord gives nil when the lab has none yet.
func (l *Lab) readRecord() (*record, error) {
	data, err := os.ReadFile(l.path(recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, api.Errorf(api.Internal, "read lab: %w", err)
	}
	r := new(record)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, api.Errorf(api.Internal, "read lab: %s: %w; remove the lab with: polder lab down", l.path(recordFile), err)
	}
	if r.Version != recordVersion {
		return nil, api.Errorf(api.Unsupported, "read lab: %s has version %d, this polder knows %d", l.path(recordFile), r.Version, recordVersion)
	}
	return r, nil
}

func (l *Lab) writeRecord(r *record) error {
	data, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(l.path(recordFile+".new"), data, 0o644)
	}
	if err == nil {
		err = os.Rename(l.path(recordFile+".new"), l.path(recordFile))
	}
	if err != nil {
		return api.Errorf(api.Internal, "write lab: %w", err)
	}
	return nil
}

// makeRecord chooses the lab's subnets: from its id, past those that the machine uses.
func (l *Lab) makeRecord(o UpOptions) (*record, error) {
	used, err := machinePrefixes()
	if err != nil {
		return nil, err
	}
	subnet, ok := chooseSubnet(l.id, used)
	if !ok {
		return nil, api.Errorf(api.Exhausted, "choose a subnet for the lab: every 10.200.0.0/24 to 10.239.255.0/24 is in use on this machine")
	}
	id, _ := hex.DecodeString(l.id)
	ula := [16]byte{0xfd, 0x70, id[0], id[1], id[2], id[3]}
	r := &record{Version: recordVersion, Backend: o.Backend, Cluster: !o.Alone && !o.NoDaemon, Sites: o.Sites, Subnet: subnet, Subnet6: netip.PrefixFrom(netip.AddrFrom16(ula), 64)}
	return r, l.writeRecord(r)
}

// chooseSubnet walks through 10.200.0.0/24 … 10.239.255.0/24 from a place that id decides.
func chooseSubnet(id string, used []netip.Prefix) (netip.Prefix, bool) {
	const count = 40 * 256
	var start int
	for _, c := range []byte(id) {
		start = (start*31 + int(c)) % count
	}
next:
	for i := range count {
		at := (start + i) % count
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(200 + at/256), byte(at % 256), 0}), 24)
		for _, u := range used {
			if u.Bits() > 0 && u.Overlaps(p) {
				continue next
			}
		}
		return p, true
	}
	return netip.Prefix{}, false
}

// mac is the same for a host whenever it starts, so that its neighbours need not learn a new one.
func (l *Lab) mac(n int) net.HardwareAddr {
	id, _ := hex.DecodeString(l.id)
	return net.HardwareAddr{0x02, id[0], id[1], id[2], id[3], byte(n)}
}
