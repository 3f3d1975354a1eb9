package settings

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// set stores a value of the YAML file, or the text of a variable or flag.
func (k Key) set(value any, isText bool) error {
	text, ok := value.(string)
	switch {
	case k.field.Type() == durationType:
		return k.setDuration(value)
	case k.field.Kind() == reflect.Slice:
		return k.setList(value, isText)
	case k.field.Kind() == reflect.String:
		if !ok {
			return fmt.Errorf("want text, got %v; put it in quotes", value)
		}
		k.field.SetString(text)
		return nil
	case k.field.Kind() == reflect.Bool:
		return k.setBool(value, isText)
	}
	if ok && !isText && !k.isSize() {
		return fmt.Errorf("want a number, got the text %q", text)
	}
	return k.setNumber(fmt.Sprint(value))
}

func (k Key) setBool(value any, isText bool) error {
	b, ok := value.(bool)
	if text, is := value.(string); is && isText {
		b, ok = text == "true", text == "true" || text == "false"
	}
	if !ok {
		return fmt.Errorf("want true or false, got %v", value)
	}
	k.field.SetBool(b)
	return nil
}

func (k Key) setDuration(value any) error {
	text := fmt.Sprint(value)
	d, err := time.ParseDuration(text)
	if err != nil {
		if _, number := strconv.ParseFloat(text, 64); number == nil {
			return fmt.Errorf("want a duration, got %s without a unit; write %ss or %sms", text, text, text)
		}
		return fmt.Errorf("want a duration such as 30s, 5m or 100ms, got %q", text)
	}
	k.field.SetInt(int64(d))
	return nil
}

// setList takes a YAML list; a variable or flag separates with commas.
func (k Key) setList(value any, isText bool) error {
	var list []string
	switch v := value.(type) {
	case []any:
		for _, item := range v {
			text, ok := item.(string)
			if !ok {
				return fmt.Errorf("want a list of texts, got %v in it", item)
			}
			list = append(list, text)
		}
	case string:
		if !isText {
			return fmt.Errorf("want a list, got the text %q; write [%s]", v, v)
		}
		for item := range strings.SplitSeq(v, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
	default:
		return fmt.Errorf("want a list, got %v", value)
	}
	k.field.Set(reflect.ValueOf(list))
	return nil
}

func (k Key) setNumber(text string) error {
	unit := int64(1)
	if k.isSize() {
		text, unit = cutUnit(text)
	}
	switch {
	case k.field.CanInt():
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n > math.MaxInt64/unit || n < math.MinInt64/unit || k.field.OverflowInt(n*unit) {
			return k.noNumber(text)
		}
		k.field.SetInt(n * unit)
	case k.field.CanUint():
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n > math.MaxUint64/uint64(unit) || k.field.OverflowUint(n*uint64(unit)) {
			return k.noNumber(text)
		}
		k.field.SetUint(n * uint64(unit))
	case k.field.CanFloat():
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return k.noNumber(text)
		}
		k.field.SetFloat(n)
	default:
		return fmt.Errorf("a field of type %s is no setting", k.field.Type())
	}
	return nil
}

func (k Key) noNumber(text string) error {
	if k.isSize() {
		return fmt.Errorf("want a size such as 67108864 or 64MiB, got %q", text)
	}
	if k.field.CanFloat() {
		return fmt.Errorf("want a number, got %q", text)
	}
	return fmt.Errorf("want a whole number of at most %d bits, got %q", k.field.Type().Bits(), text)
}

// cutUnit splits "64MiB" into its number and 1<<20.
func cutUnit(text string) (string, int64) {
	units := []struct {
		suffix string
		bytes  int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}}
	for _, u := range units {
		if number, ok := strings.CutSuffix(text, u.suffix); ok {
			return strings.TrimSpace(number), u.bytes
		}
	}
	return text, 1
}
