package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"polder/api"
)

// Images lists all images.
func (c *Client) Images(ctx context.Context) (images []api.Image, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/images", nil, &images)
	return images, err
}

// Image finds one by alias, digest or a unique prefix of the digest.
func (c *Client) Image(ctx context.Context, ref string) (image api.Image, err error) {
	err = c.call(ctx, http.MethodGet, imagePath(ref), nil, &image)
	return image, err
}

// BuildImage starts to build an image from a distribution's packages.
func (c *Client) BuildImage(ctx context.Context, req api.ImageBuildRequest) (op api.Operation, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/images/build", req, &op)
	return op, err
}

// WarmImage starts to make, or to remove, a template of an image.
func (c *Client) WarmImage(ctx context.Context, ref string, req api.WarmRequest) (op api.Operation, err error) {
	err = c.call(ctx, http.MethodPost, imagePath(ref)+"/warm", req, &op)
	return op, err
}

// Templates lists the templates of all images.
func (c *Client) Templates(ctx context.Context) (list []api.Template, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/templates", nil, &list)
	return list, err
}

// ImportImage sends a file and starts to make an image of it. It returns when the file has been sent.
func (c *Client) ImportImage(ctx context.Context, req api.ImageImportRequest, body io.Reader) (op api.Operation, err error) {
	q := url.Values{"alias": {req.Alias}}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	set("description", req.Description)
	set("format", string(req.Format))
	set("filename", req.Filename)
	if req.SizeBytes > 0 {
		set("size_bytes", strconv.FormatInt(int64(req.SizeBytes), 10))
	}
	res, err := c.send(ctx, http.MethodPost, "/v1/images/import?"+q.Encode(), io.NopCloser(body), "application/octet-stream")
	if err != nil {
		return op, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&op); err != nil {
		return op, c.failed(ctx, err)
	}
	return op, nil
}

// ExportImage writes an image as a file to w and returns when all of it has been written.
func (c *Client) ExportImage(ctx context.Context, ref string, format api.ImageFormat, w io.Writer) error {
	res, err := c.send(ctx, http.MethodGet, imagePath(ref)+"/export?format="+url.QueryEscape(string(format)), nil, "")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return c.copy(ctx, w, res.Body)
}

// DeleteImage starts to delete an image, or takes one of several aliases away.
func (c *Client) DeleteImage(ctx context.Context, ref string) (op api.Operation, err error) {
	err = c.call(ctx, http.MethodDelete, imagePath(ref), nil, &op)
	return op, err
}

// imagePath escapes a reference as one element of the path, slashes included.
func imagePath(ref string) string { return "/v1/images/" + url.PathEscape(ref) }

// copy passes a body on and keeps errors of the connection apart from those of w.
func (c *Client) copy(ctx context.Context, w io.Writer, body io.Reader) error {
	local := &localWriter{w: w}
	_, err := io.Copy(local, body)
	switch {
	case local.err != nil:
		return api.Errorf(api.Internal, "write: %w", local.err)
	case err != nil:
		return c.failed(ctx, err)
	}
	return nil
}

type localWriter struct {
	w   io.Writer
	err error
}

func (l *localWriter) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	l.err = err
	return n, err
}
