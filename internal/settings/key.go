package settings

import (
	"reflect"
	"strings"
	"time"
)

// Key is one setting of a configuration struct.
type Key struct {
	Name  string // "kafka.sasl.username"
	field reflect.Value
}

var durationType = reflect.TypeFor[time.Duration]()

// Keys lists the settings of the struct that cfg points to, in the order of its
// fields. An exported field without a yaml tag, or with "-", is no setting.
func Keys(cfg any) []Key {
	var keys []Key
	walk("", reflect.ValueOf(cfg).Elem(), &keys)
	return keys
}

func walk(prefix string, v reflect.Value, keys *[]Key) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, option, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case option == "inline":
			walk(prefix, v.Field(i), keys)
		case name == "" || name == "-" || !f.IsExported():
		case f.Type.Kind() == reflect.Struct:
			walk(prefix+name+".", v.Field(i), keys)
		default:
			*keys = append(*keys, Key{Name: prefix + name, field: v.Field(i)})
		}
	}
}

// Value returns what the struct holds.
func (k Key) Value() any { return k.field.Interface() }

// Kind says for people what the key takes.
func (k Key) Kind() string {
	switch {
	case k.field.Type() == durationType:
		return "duration"
	case k.isSize():
		return "size"
	}
	switch k.field.Kind() {
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "text"
	case reflect.Slice:
		return "list"
	}
	return "number"
}

// isSize reports whether the key counts bytes and so takes units.
func (k Key) isSize() bool {
	return strings.HasSuffix(k.Name, "_bytes") && (k.field.CanInt() || k.field.CanUint())
}

// env returns the key's environment variable.
func (k Key) env(prefix string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(k.Name, ".", "_"))
}
