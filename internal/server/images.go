package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

const tagImage = "images"

type imageInput struct {
	Ref string `path:"ref" doc:"alias (slashes escaped) or digest"`
}

type warmInput struct {
	Ref  string `path:"ref" doc:"alias (slashes escaped) or digest"`
	Body *api.WarmRequest
}

func (s *Server) routeImages() {
	huma.Register(s.api, s.operation(http.MethodGet, "/images", "list-images", tagImage, "List all images"),
		func(ctx context.Context, _ *none) (*out[[]api.Image], error) {
			images, err := s.backend.Images(ctx)
			return answer(list(images), err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/images/{ref}", "get-image", tagImage, "Get an image"),
		func(ctx context.Context, in *imageInput) (*out[api.Image], error) {
			return answer(s.backend.Image(ctx, in.Ref))
		})
	huma.Register(s.api, s.starts(http.MethodDelete, "/images/{ref}", "delete-image", tagImage, "Delete an image, or one of its aliases"),
		func(ctx context.Context, in *imageInput) (*started, error) {
			return start(s.backend.DeleteImage(ctx, in.Ref))
		})
	huma.Register(s.api, s.starts(http.MethodPost, "/images/build", "build-image", tagImage, "Build an image from a distribution's packages"),
		func(ctx context.Context, in *struct{ Body api.ImageBuildRequest }) (*started, error) {
			return start(s.backend.BuildImage(ctx, in.Body))
		})
	warm := s.starts(http.MethodPost, "/images/{ref}/warm", "warm-image", tagImage, "Keep an image's VM booted, so that launches are forks of it")
	warm.Description = "The operation's result is a Template; with off it is removed, and there is no result."
	huma.Register(s.api, warm, func(ctx context.Context, in *warmInput) (*started, error) {
		var req api.WarmRequest
		if in.Body != nil {
			req = *in.Body
		}
		return start(s.backend.WarmImage(ctx, in.Ref, req))
	})
	huma.Register(s.api, s.operation(http.MethodGet, "/templates", "list-templates", tagImage, "List the templates of all images"),
		func(ctx context.Context, _ *none) (*out[[]api.Template], error) {
			templates, err := s.backend.Templates(ctx)
			return answer(list(templates), err)
		})
	s.raw(s.importRoute(), "", s.importImage)
	export := s.operation(http.MethodGet, "/images/{ref}/export", "export-image", tagImage, "Read an image as a file")
	export.Parameters = []*huma.Param{pathParam("ref", "alias (slashes escaped) or digest"), queryParam("format", "tar, squashfs, qcow2, raw or oci; default tar", "string")}
	s.raw(export, "application/octet-stream", s.exportImage)
}

func (s *Server) importRoute() huma.Operation {
	op := s.starts(http.MethodPost, "/images/import", "import-image", tagImage, "Make an image of the file in the body")
	op.Parameters = []*huma.Param{
		queryParam("alias", "name of the image", "string"),
		queryParam("description", "for people", "string"),
		queryParam("format", "tar, squashfs, qcow2, raw or oci; default: found out from the content", "string"),
		queryParam("filename", "for the provenance", "string"),
		queryParam("size_bytes", "of the file, for the progress", "integer"),
	}
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/octet-stream": {}}}
	op.Responses = map[string]*huma.Response{"202": {
		Description: "Accepted",
		Content:     map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Ref: "#/components/schemas/Operation"}}},
	}}
	return op
}

// importImage hands the body to the backend as it comes.
func (s *Server) importImage(w http.ResponseWriter, r *http.Request) {
	req, err := importRequest(r)
	var op api.Operation
	if err == nil {
		op, err = s.backend.ImportImage(r.Context(), req, r.Body)
	}
	if err != nil {
		refuseUpload(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	json.NewEncoder(w).Encode(op) //nolint:errcheck // the client went away: the operation goes on
}

// refuseUpload answers with the error while the client still sends, and reads on for a moment: were the connection
// closed at once, the client would see a broken pipe instead of the answer.
func refuseUpload(w http.ResponseWriter, r *http.Request, err error) {
	control := http.NewResponseController(w)
	control.EnableFullDuplex() //nolint:errcheck // HTTP/2 is duplex by itself
	w.Header().Set("Connection", "close")
	writeProblem(w, err)
	control.Flush()                                          //nolint:errcheck // the client went away
	control.SetReadDeadline(time.Now().Add(2 * time.Second)) //nolint:errcheck // best effort
	io.Copy(io.Discard, r.Body)                              //nolint:errcheck // best effort
}

func importRequest(r *http.Request) (api.ImageImportRequest, error) {
	q := r.URL.Query()
	req := api.ImageImportRequest{
		Alias:       q.Get("alias"),
		Description: q.Get("description"),
		Format:      api.ImageFormat(q.Get("format")),
		Filename:    q.Get("filename"),
	}
	for name := range q {
		if !slices.Contains([]string{"alias", "description", "format", "filename", "size_bytes"}, name) {
			return req, api.Errorf(api.Invalid, "query parameter %q is unknown", name)
		}
	}
	if text := q.Get("size_bytes"); text != "" {
		size, err := strconv.ParseInt(text, 10, 64)
		if err != nil || size < 0 {
			return req, api.Errorf(api.Invalid, "query size_bytes=%q: want a number of bytes", text)
		}
		req.SizeBytes = api.Bytes(size)
	}
	if req.Alias == "" {
		return req, api.Errorf(api.Invalid, "import image: the query needs an alias")
	}
	return req, checkFormat(req.Format)
}

func checkFormat(f api.ImageFormat) error {
	switch f {
	case api.FormatAuto, api.FormatTar, api.FormatSquashFS, api.FormatQcow2, api.FormatRaw, api.FormatOCI:
		return nil
	}
	return api.Errorf(api.Invalid, "image format %q: want tar, squashfs, qcow2, raw or oci", f)
}

// exportImage streams an image. An error after the first byte can only break the connection off.
func (s *Server) exportImage(w http.ResponseWriter, r *http.Request) {
	ref, format := r.PathValue("ref"), api.ImageFormat(r.URL.Query().Get("format"))
	if err := checkFormat(format); err != nil {
		writeProblem(w, err)
		return
	}
	if format == api.FormatAuto {
		format = api.FormatTar
	}
	ctx, cancel := s.streamContext(r)
	defer cancel()
	body := &lateWriter{w: w}
	err := s.backend.ExportImage(ctx, ref, format, body)
	switch {
	case err == nil && !body.wrote:
		body.begin()
	case err != nil && !body.wrote:
		writeProblem(w, err)
	case err != nil:
		s.log.Error("export ended early", "image", ref, "err", err)
		panic(http.ErrAbortHandler)
	}
}

// lateWriter sends the headers of a file with its first byte.
type lateWriter struct {
	w     http.ResponseWriter
	wrote bool
}

func (l *lateWriter) begin() {
	l.wrote = true
	l.w.Header().Set("Content-Type", "application/octet-stream")
	l.w.WriteHeader(http.StatusOK)
}

func (l *lateWriter) Write(p []byte) (int, error) {
	if !l.wrote {
		l.begin()
	}
	return l.w.Write(p)
}
