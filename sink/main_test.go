package sink_test

import (
	"testing"

	"backstory/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
