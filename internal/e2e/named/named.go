// Package named makes sure that a test which a table names exists.
package named

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
)

// Check reports an error unless the package in root/dir has the test, whose name
// is that of a function, and of a subtest behind a slash: then that name must be a
// string in the package's tests, since most come from a table.
func Check(root, dir, test string) error {
	function, sub, _ := strings.Cut(test, "/")
	files, err := parse(root, dir)
	if err != nil {
		return err
	}
	declared, literal := false, sub == ""
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				declared = declared || n.Recv == nil && n.Name.Name == function
			case *ast.BasicLit:
				text, err := strconv.Unquote(n.Value)
				literal = literal || err == nil && n.Kind == token.STRING && strings.ReplaceAll(text, " ", "_") == sub
			}
			return true
		})
	}
	switch {
	case !declared:
		return fmt.Errorf("package %s has no test %s", dir, function)
	case !literal:
		return fmt.Errorf("package %s has no subtest %q of %s", dir, sub, function)
	}
	return nil
}

// WithPrefix returns the functions in the tests of root/dir whose names begin so.
func WithPrefix(root, dir, prefix string) (names []string, err error) {
	files, err := parse(root, dir)
	for _, file := range files {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, prefix) {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names, err
}

// parse reads the package's test files.
func parse(root, dir string) (files []*ast.File, err error) {
	paths, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		return nil, fmt.Errorf("tests of %s: %w", dir, err)
	}
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("tests of %s: %w", dir, err)
		}
		files = append(files, file)
	}
	return files, nil
}
