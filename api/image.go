package api

import "time"

// Image is a golden image: immutable, named by digest, found by alias.
type Image struct {
	Digest      string       `json:"digest" doc:"sha256:… of the payload it was made from"`
	Aliases     []string     `json:"aliases"`
	Description string       `json:"description"`
	OS          string       `json:"os" example:"debian"`
	Release     string       `json:"release" example:"13"`
	Arch        string       `json:"arch" example:"amd64"`
	Kernel      string       `json:"kernel,omitempty" doc:"version of the kernel inside; empty when there is none"`
	Models      []Model      `json:"models" doc:"the models it can run under"`
	CloudInit   bool         `json:"cloud_init" doc:"whether cloud-init is inside, so that user-data works"`
	SizeBytes   Bytes        `json:"size_bytes" doc:"of the root's files"`
	DiskBytes   Bytes        `json:"disk_bytes,omitempty" doc:"virtual size of the bootable disk: the least disk of a vm"`
	Hosts       []string     `json:"hosts" doc:"the hosts that have it in their pools; others fetch it from them when they need it"`
	CreatedAt   time.Time    `json:"created_at"`
	Provenance  Provenance   `json:"provenance"`
	Config      *ImageConfig `json:"config,omitempty" doc:"of an application image: how to run it"`
}

// Provenance says where an image came from.
type Provenance struct {
	Method string            `json:"method" enum:"build,tar,squashfs,disk,oci,publish"`
	Source string            `json:"source" doc:"suite and mirror, the file's name, or the VE"`
	Tools  map[string]string `json:"tools,omitempty" doc:"versions of the tools that made it"`
}

// ImageConfig is how an application image (OCI) is run. A system image has none: it is booted by its own init.
type ImageConfig struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"working_dir,omitempty"`
	User       string   `json:"user,omitempty" doc:"user[:group], by name or number"`
	StopSignal string   `json:"stop_signal,omitempty"`
}

// ImageBuildRequest builds an image from a distribution's packages.
type ImageBuildRequest struct {
	Source      string   `json:"source" doc:"DISTRIBUTION/RELEASE: debian/13, debian/trixie, ubuntu/24.04" example:"debian/13"`
	Alias       string   `json:"alias,omitempty" doc:"default: the source"`
	Description string   `json:"description,omitempty"`
	Packages    []string `json:"packages,omitempty" doc:"more packages"`
	CloudInit   bool     `json:"cloud_init,omitempty" doc:"include cloud-init"`
	Mirror      string   `json:"mirror,omitempty" doc:"default: the distribution's"`
}

// ImageFormat is a form an image is imported from or exported to.
type ImageFormat string

// The image formats.
const (
	FormatAuto     ImageFormat = ""         // import only: found out from the content
	FormatTar      ImageFormat = "tar"      // root file system; plain, gzip, xz or zstd
	FormatSquashFS ImageFormat = "squashfs" // root file system
	FormatQcow2    ImageFormat = "qcow2"    // bootable disk
	FormatRaw      ImageFormat = "raw"      // bootable disk
	FormatOCI      ImageFormat = "oci"      // image layout, as a tar
)

// ImageImportRequest describes the file that follows it. The file itself is the body of the request.
type ImageImportRequest struct {
	Alias       string      `json:"alias"`
	Description string      `json:"description,omitempty"`
	Format      ImageFormat `json:"format,omitempty"`
	Filename    string      `json:"filename,omitempty" doc:"for the provenance"`
	SizeBytes   Bytes       `json:"size_bytes,omitempty" doc:"of the file, for the progress"`
}

// PublishRequest makes an image of what a VE has become. The VE is stopped, or the image is made of one of its snapshots. What its system
// is known by (machine id, host name, SSH host keys, leases, journals) is left out.
type PublishRequest struct {
	Alias       string `json:"alias"`
	Snapshot    string `json:"snapshot,omitempty" doc:"name of a snapshot; default: the VE as it is"`
	Description string `json:"description,omitempty"`
	Replace     bool   `json:"replace,omitempty" doc:"move the alias here if another image has it"`
}
