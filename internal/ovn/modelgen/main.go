// Command modelgen writes Go models of the chosen tables of an OVSDB schema, one zz_ file per table. The schemas beside it
// are those of the oldest OVN that Patchbay supports (23.03): a model with a column that the server does not know makes the
// client refuse to connect.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/modelgen"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("modelgen: ")
	pkg := flag.String("package", "", "name of the generated package")
	schema := flag.String("schema", "", "schema file")
	tables := flag.String("tables", "", "comma separated tables to generate")
	flag.Parse()
	if err := generate(*pkg, *schema, strings.Split(*tables, ",")); err != nil {
		log.Fatal(err)
	}
}

func generate(pkg, path string, tables []string) error {
	schema, err := readSchema(path)
	if err != nil {
		return err
	}
	chosen := map[string]ovsdb.TableSchema{}
	for _, name := range tables {
		table, ok := schema.Tables[name]
		if !ok {
			return fmt.Errorf("%s has no table %s", path, name)
		}
		chosen[name] = table
	}
	schema.Tables = chosen
	gen, err := modelgen.NewGenerator()
	if err != nil {
		return err
	}
	for name, table := range chosen {
		args := modelgen.GetTableTemplateData(pkg, name, &table)
		args.WithExtendedGen(true)
		if err := gen.Generate("zz_"+modelgen.FileName(name), modelgen.NewTableTemplate(), args); err != nil {
			return err
		}
	}
	return gen.Generate("zz_model.go", modelgen.NewDBTemplate(), modelgen.GetDBTemplateData(pkg, schema))
}

func readSchema(path string) (ovsdb.DatabaseSchema, error) {
	var schema ovsdb.DatabaseSchema
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return schema, err
	}
	if err := json.Unmarshal(data, &schema); err != nil {
		return schema, fmt.Errorf("schema %s: %w", path, err)
	}
	return schema, nil
}
