package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
	"unicode"
)

const mostLines = 500

func filesAreShort(t *testing.T, source []file) {
	for _, f := range source {
		if f.lines > mostLines {
			t.Errorf("%s has %d lines, at most %d: a file is one type or one verb", f.path, f.lines, mostLines)
		}
	}
}

func everyPackageHasOneComment(t *testing.T, source []file) {
	comments := map[string][]string{}
	for _, f := range source {
		if f.test {
			if f.syntax.Name.Name == "main" {
				t.Errorf("%s: a test of package main", f.path)
			}
			continue
		}
		if _, ok := comments[f.pkg]; !ok {
			comments[f.pkg] = nil
		}
		if f.syntax.Doc != nil {
			comments[f.pkg] = append(comments[f.pkg], f.path)
		}
	}
	for pkg, where := range comments {
		if len(where) != 1 {
			t.Errorf("package %s has %d package comments %v, want one: readers look for what it owns at one place", pkg, len(where), where)
		}
	}
}

func noInit(t *testing.T, source []file) {
	for _, f := range source {
		for _, decl := range f.syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function: what happens is to be seen where it is called", f.path)
			}
		}
	}
}

func noTODO(t *testing.T, source []file) {
	for _, f := range source {
		for _, group := range f.syntax.Comments {
			for _, mark := range []string{"TODO", "FIXME", "XXX"} {
				if strings.Contains(group.Text(), mark) && f.pkg != "internal/archtest" {
					t.Errorf("%s has a %s: do it, or file it", f.path, mark)
				}
			}
		}
	}
}

// noMutableGlobals finds package-level variables that are assigned to, or whose type is made to be changed. State
// in them is shared by all tests of a process and by both of two daemons in one.
func noMutableGlobals(t *testing.T, source []file) {
	byPackage := map[string][]file{}
	for _, f := range source {
		if !f.test {
			byPackage[f.pkg] = append(byPackage[f.pkg], f)
		}
	}
	for _, files := range byPackage {
		globals := map[string]bool{}
		for _, f := range files {
			for _, spec := range globalSpecs(f) {
				for _, name := range spec.Names {
					globals[name.Name] = name.Name != "_"
				}
				if stateful(spec) {
					t.Errorf("%s: %s is state at package level: put it into a struct that its users are given", f.path, spec.Names[0])
				}
			}
		}
		for _, f := range files {
			for _, name := range assigned(f, globals) {
				t.Errorf("%s changes the package-level variable %s: put it into a struct that its users are given", f.path, name)
			}
		}
	}
}

func globalSpecs(f file) []*ast.ValueSpec {
	var specs []*ast.ValueSpec
	for _, decl := range f.syntax.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.VAR {
			continue
		}
		for _, s := range gen.Specs {
			if spec, ok := s.(*ast.ValueSpec); ok {
				specs = append(specs, spec)
			}
		}
	}
	return specs
}

// stateful types are of no use unless they change.
func stateful(spec *ast.ValueSpec) bool {
	kind := spec.Type
	if kind == nil && len(spec.Values) > 0 {
		value := spec.Values[0]
		if ref, ok := value.(*ast.UnaryExpr); ok {
			value = ref.X
		}
		if lit, ok := value.(*ast.CompositeLit); ok {
			kind = lit.Type
		}
		if call, ok := value.(*ast.CallExpr); ok && isIdent(call.Fun, "make") {
			return true
		}
	}
	if _, ok := kind.(*ast.ChanType); ok {
		return true
	}
	sel, ok := kind.(*ast.SelectorExpr)
	return ok && (isIdent(sel.X, "sync") || isIdent(sel.X, "atomic"))
}

func isIdent(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// assigned lists the globals that a file assigns to, increments, deletes from, or takes the address of.
func assigned(f file, globals map[string]bool) []string {
	var names []string
	note := func(e ast.Expr) {
		id := target(e)
		if id == nil || !globals[id.Name] {
			return
		}
		// The parser has resolved what is declared in the same file: a local variable of that name is another one.
		if id.Obj == nil || id.Obj == f.syntax.Scope.Lookup(id.Name) {
			names = append(names, id.Name)
		}
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					note(e)
				}
			}
		case *ast.IncDecStmt:
			note(n.X)
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				note(n.X)
			}
		case *ast.CallExpr:
			if (isIdent(n.Fun, "delete") || isIdent(n.Fun, "clear")) && len(n.Args) > 0 {
				note(n.Args[0])
			}
		}
		return true
	})
	return names
}

// target is the variable at the root of what is assigned to: x of x.y[z].
func target(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// synonyms of our nouns. One thing has one name, in the code as in the manual.
var synonyms = map[string]string{"instance": "VE", "guest": "VE", "node": "host", "job": "operation"}

// foreign are names that others chose for things of theirs: QEMU's guest agent, cloud-init's instance id, device nodes.
var foreign = []string{"guestagent", "instanceid", "mknod", "makenode", "loopnode", "devicenode"}

func nounsHaveNoSynonyms(t *testing.T, source []file) {
	for _, f := range source {
		if f.test { // tests also speak of what others call so
			continue
		}
		for _, decl := range f.syntax.Decls {
			for _, name := range declared(decl) {
				checkNoun(t, f, name)
			}
		}
	}
}

func checkNoun(t *testing.T, f file, name string) {
	t.Helper()
	if f.pkg == "internal/model/vm" && strings.HasPrefix(name, "guest") {
		return // of QEMU's guest agent
	}
	lower := strings.ToLower(name)
	for _, known := range foreign {
		lower = strings.ReplaceAll(lower, known, "")
	}
	for _, word := range words(name) {
		noun, ok := synonyms[strings.TrimSuffix(word, "s")]
		if ok && strings.Contains(lower, word) {
			t.Errorf("%s declares %s: a %s is called %s", f.path, name, word, noun)
		}
	}
}

// declared are the names that a declaration introduces, fields and methods included.
func declared(decl ast.Decl) []string {
	var names []string
	ast.Inspect(decl, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			names = append(names, n.Name.Name)
			return false
		case *ast.TypeSpec:
			names = append(names, n.Name.Name)
		case *ast.ValueSpec:
			for _, id := range n.Names {
				names = append(names, id.Name)
			}
		case *ast.Field:
			for _, id := range n.Names {
				names = append(names, id.Name)
			}
		}
		return true
	})
	return names
}

// words splits a name written in camel case.
func words(name string) []string {
	var list []string
	start := 0
	runes := []rune(name)
	for i := 1; i <= len(runes); i++ {
		if i == len(runes) || unicode.IsUpper(runes[i]) && !unicode.IsUpper(runes[i-1]) || runes[i] == '_' {
			list = append(list, strings.ToLower(strings.Trim(string(runes[start:i]), "_")))
			start = i
		}
	}
	return list
}

func TestWords(t *testing.T) {
	for name, want := range map[string][]string{
		"guestAgent": {"guest", "agent"}, "NodeID": {"node", "id"}, "x": {"x"}, "JOB_name": {"job", "name"},
	} {
		if got := words(name); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestMutableGlobalsAreFound(t *testing.T) {
	const code = `package p
import "sync"
var table = map[string]int{}
var list, _ = 1, 2
var kept = 3
var mu sync.Mutex
var queue = make(chan int)
func f(kept *int) {
	table["x"] = 1
	list++
	*kept = 2
	local := 1
	local = 2
	_ = local
}
func g() { delete(table, "x") }
`
	syntax, err := parser.ParseFile(token.NewFileSet(), "p.go", code, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := file{syntax: syntax}
	globals := map[string]bool{}
	var state []string
	for _, spec := range globalSpecs(f) {
		globals[spec.Names[0].Name] = true
		if stateful(spec) {
			state = append(state, spec.Names[0].Name)
		}
	}
	if want := []string{"mu", "queue"}; !slices.Equal(state, want) {
		t.Errorf("state in %v, want %v", state, want)
	}
	if got, want := assigned(f, globals), []string{"table", "list", "table"}; !slices.Equal(got, want) {
		t.Errorf("assigned %v, want %v", got, want)
	}
}
