package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "polder"

// file is one Go file of the module.
type file struct {
	path   string // below the module's root
	pkg    string // its directory: "internal/store"; "." for the root
	test   bool
	lines  int
	syntax *ast.File
}

// imports are the paths that a file imports, those of the module as directories ("internal/store").
func (f file) imports() (ours, others []string) {
	for _, spec := range f.syntax.Imports {
		path, _ := strconv.Unquote(spec.Path.Value)
		if dir, ok := strings.CutPrefix(path, module+"/"); ok {
			ours = append(ours, dir)
		} else {
			others = append(others, path)
		}
	}
	return ours, others
}

// root finds the module's directory.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

func TestRules(t *testing.T) {
	files := source(t)
	for name, rule := range map[string]func(*testing.T, []file){
		"APIImportsTheStandardLibraryOnly": apiImportsTheStandardLibraryOnly,
		"EveryPackageHasOneComment":        everyPackageHasOneComment,
		"FilesAreShort":                    filesAreShort,
		"ForbiddenImports":                 forbiddenImports,
		"ImportsLookDown":                  importsLookDown,
		"NoInit":                           noInit,
		"NoMutableGlobals":                 noMutableGlobals,
		"NoTODO":                           noTODO,
		"NounsHaveNoSynonyms":              nounsHaveNoSynonyms,
		"SuitesAreForTests":                suitesAreForTests,
		"ToolsAreRunByPackageCommand":      toolsAreRunByPackageCommand,
	} {
		t.Run(name, func(t *testing.T) { rule(t, files) })
	}
}

// source parses all Go files of the module, whatever their build constraints.
func source(t *testing.T) []file {
	t.Helper()
	top := root(t)
	var files []file
	set := token.NewFileSet()
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skip(top, path, d.Name())
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		syntax, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		files = append(files, file{
			path: rel, pkg: filepath.ToSlash(filepath.Dir(rel)), test: strings.HasSuffix(rel, "_test.go"),
			lines: set.File(syntax.Pos()).LineCount(), syntax: syntax,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Fatalf("only %d files found below %s", len(files), top)
	}
	return files
}

// skip leaves out what the go tool leaves out, and modules of their own.
func skip(top, path, name string) error {
	if path == top {
		return nil
	}
	if name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}
