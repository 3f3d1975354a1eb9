package capture

import (
	"context"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// firstUserOID is the lowest OID that may mean different types on different
// servers: below it they are assigned by hand and for ever.
const firstUserOID = 10000

// ColumnType is what a declared type comes down to.
type ColumnType struct {
	Base  uint32     `json:"base"`            // with domains unwrapped
	Elem  uint32     `json:"elem,omitempty"`  // of an array: element type with domains unwrapped; else 0
	Delim byte       `json:"delim,omitempty"` // as in Column
	Inner *ArrayType `json:"inner,omitempty"` // as in Column
}

// comeDownTo fills in what the column's type comes down to.
func (c *Column) comeDownTo(t ColumnType) {
	c.Base, c.Elem, c.Delim, c.Inner = t.Base, t.Elem, t.Delim, t.Inner
}

// equal reports whether both arrays are made of the same.
func (a *ArrayType) equal(b *ArrayType) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Elem == b.Elem && a.Delim == b.Delim && a.Inner.equal(b.Inner)
}

// builtins are the types of every server that have an array type.
var builtins = [...]struct {
	name  string
	oid   uint32
	array uint32
}{
	{"bool", 16, 1000}, {"bytea", 17, 1001}, {"char", 18, 1002}, {"name", 19, 1003}, {"int8", 20, 1016},
	{"int2", 21, 1005}, {"int2vector", 22, 1006}, {"int4", 23, 1007}, {"regproc", 24, 1008},
	{"text", 25, 1009}, {"oid", 26, 1028}, {"tid", 27, 1010}, {"xid", 28, 1011}, {"cid", 29, 1012},
	{"oidvector", 30, 1013}, {"json", 114, 199}, {"xml", 142, 143}, {"point", 600, 1017},
	{"lseg", 601, 1018}, {"path", 602, 1019}, {"box", 603, 1020}, {"polygon", 604, 1027},
	{"line", 628, 629}, {"cidr", 650, 651}, {"float4", 700, 1021}, {"float8", 701, 1022},
	{"circle", 718, 719}, {"macaddr8", 774, 775}, {"money", 790, 791}, {"macaddr", 829, 1040},
	{"inet", 869, 1041}, {"aclitem", 1033, 1034}, {"bpchar", 1042, 1014}, {"varchar", 1043, 1015},
	{"date", 1082, 1182}, {"time", 1083, 1183}, {"timestamp", 1114, 1115}, {"timestamptz", 1184, 1185},
	{"interval", 1186, 1187}, {"timetz", 1266, 1270}, {"bit", 1560, 1561}, {"varbit", 1562, 1563},
	{"numeric", 1700, 1231}, {"refcursor", 1790, 2201}, {"regprocedure", 2202, 2207},
	{"regoper", 2203, 2208}, {"regoperator", 2204, 2209}, {"regclass", 2205, 2210}, {"regtype", 2206, 2211},
	{"uuid", 2950, 2951}, {"txid_snapshot", 2970, 2949}, {"pg_lsn", 3220, 3221}, {"tsvector", 3614, 3643},
	{"tsquery", 3615, 3645}, {"gtsvector", 3642, 3644}, {"regconfig", 3734, 3735},
	{"regdictionary", 3769, 3770}, {"jsonb", 3802, 3807}, {"int4range", 3904, 3905},
	{"numrange", 3906, 3907}, {"tsrange", 3908, 3909}, {"tstzrange", 3910, 3911}, {"daterange", 3912, 3913},
	{"int8range", 3926, 3927}, {"jsonpath", 4072, 4073}, {"regnamespace", 4089, 4090},
	{"regrole", 4096, 4097}, {"regcollation", 4191, 4192}, {"int4multirange", 4451, 6150},
	{"nummultirange", 4532, 6151}, {"tsmultirange", 4533, 6152}, {"tstzmultirange", 4534, 6153},
	{"datemultirange", 4535, 6155}, {"int8multirange", 4536, 6157}, {"pg_snapshot", 5038, 5039},
	{"xid8", 5069, 271},
}

// builtinType returns what a type below firstUserOID comes down to.
func builtinType(oid uint32) ColumnType {
	for i := range builtins {
		if builtins[i].array == oid {
			t := ColumnType{Base: oid, Elem: builtins[i].oid}
			if builtins[i].name == "box" {
				t.Delim = ';'
			}
			return t
		}
	}
	return ColumnType{Base: oid}
}

// builtinOID finds a type by its name in pg_type, where an array type has an
// underscore before the name of its elements.
func builtinOID(name string) (uint32, bool) {
	elem, array := strings.CutPrefix(name, "_")
	for i := range builtins {
		switch b := &builtins[i]; {
		case array && b.name == elem:
			return b.array, true
		case !array && b.name == name:
			return b.oid, true
		}
	}
	return 0, false
}

// typesQuery yields the asked-for types and all that they come down to: domains
// to their base, arrays to their elements. Only a type whose element knows it as
// its array is one; others (point, name) merely have subscripts.
const typesQuery = `
WITH RECURSIVE seen(oid) AS (
	SELECT pg_catalog.unnest($1::pg_catalog.oid[])
	UNION
	SELECT CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END
	FROM seen JOIN pg_catalog.pg_type t ON t.oid = seen.oid
	WHERE t.typtype = 'd' OR t.typelem <> 0
)
SELECT t.oid, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE 0 END,
	CASE WHEN t.typtype <> 'd' AND e.typarray = t.oid THEN e.oid ELSE 0 END,
	coalesce(nullif(e.typdelim, ','), '')::text
FROM seen JOIN pg_catalog.pg_type t ON t.oid = seen.oid
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem`

// typeRow is a row of typesQuery; 0 means that it is no domain, or no array.
type typeRow struct {
	domainOf, arrayOf uint32
	delim             string // of the elements; empty: a comma
}

// resolveTypes returns what each of the types comes down to. A type that the
// catalog does not have, because it was dropped, is not among them.
func resolveTypes(ctx context.Context, conn *pgconn.PgConn, oids []uint32) (map[uint32]ColumnType, error) {
	resolved := make(map[uint32]ColumnType, len(oids))
	var list strings.Builder
	for _, oid := range oids {
		if oid < firstUserOID {
			resolved[oid] = builtinType(oid)
			continue
		}
		if list.Len() > 0 {
			list.WriteByte(',')
		}
		list.WriteString(strconv.FormatUint(uint64(oid), 10))
	}
	if list.Len() == 0 {
		return resolved, nil
	}
	rows, err := query(ctx, conn, "look up types", typesQuery, "{"+list.String()+"}")
	if err != nil {
		return nil, err
	}
	catalog := make(map[uint32]typeRow, len(rows))
	for _, row := range rows {
		catalog[parseOID(row[0])] = typeRow{domainOf: parseOID(row[1]), arrayOf: parseOID(row[2]), delim: row[3]}
	}
	for _, oid := range oids {
		if _, there := catalog[oid]; !there || oid < firstUserOID {
			continue
		}
		t := ColumnType{Base: unwrap(catalog, oid)}
		if array := arrayType(catalog, t.Base); array != nil {
			t.Elem, t.Delim, t.Inner = array.Elem, array.Delim, array.Inner
		}
		resolved[oid] = t
	}
	return resolved, nil
}

// arrayType says what an array is made of, at any depth; nil if oid is none.
func arrayType(catalog map[uint32]typeRow, oid uint32) *ArrayType {
	elem := catalog[oid].arrayOf
	if elem == 0 {
		return nil
	}
	array := &ArrayType{Elem: unwrap(catalog, elem)}
	if delim := catalog[oid].delim; delim != "" {
		array.Delim = delim[0]
	}
	array.Inner = arrayType(catalog, array.Elem)
	return array
}

// unwrap follows domains down to the type that they are made of. A domain
// can only be made of a type that was there before it, so this ends.
func unwrap(catalog map[uint32]typeRow, oid uint32) uint32 {
	for catalog[oid].domainOf != 0 {
		oid = catalog[oid].domainOf
	}
	return oid
}

// parseOID parses what the server printed as an OID.
func parseOID(text string) uint32 {
	oid, _ := strconv.ParseUint(text, 10, 32) // the server prints nothing else
	return uint32(oid)
}
