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
	paths, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		return fmt.Errorf("tests of %s: %w", dir, err)
	}
	declared, literal := false, sub == ""
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("tests of %s: %w", dir, err)
		}
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
