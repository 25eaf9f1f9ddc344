//! Backslash commands: queries on `pg_catalog`, and switches of the shell.

use super::run::Shell;

const HELP: &str = "\
\\d             tables and views          \\d NAME   columns and indexes of a table
\\dt [NAME]     tables                    \\di       indexes
\\dn            schemas                   \\du       roles
\\l             databases                 \\conninfo where this shell is connected
\\timing        time of each statement    \\x        one line per value
\\?             this help                 \\q        leave
A statement ends with a semicolon. Ctrl-C cancels the running one.";

impl Shell {
    /// Runs a backslash command. False on an error.
    pub async fn meta(&mut self, line: &str) -> bool {
        let line = line.trim_end_matches(';');
        let (command, argument) = match line.split_once(char::is_whitespace) {
            Some((command, argument)) => (command, argument.trim()),
            None => (line, ""),
        };
        match command.trim_end_matches('+') {
            "\\q" => self.quit = true,
            "\\?" | "\\h" => println!("{HELP}"),
            "\\timing" => {
                self.timing = !self.timing;
                println!("Timing is {}.", if self.timing { "on" } else { "off" });
            }
            "\\x" => {
                self.expanded = !self.expanded;
                let state = if self.expanded { "on" } else { "off" };
                println!("Expanded display is {state}.");
            }
            "\\conninfo" => println!("You are connected to {}", self.url),
            "\\d" if !argument.is_empty() => return self.describe(argument).await,
            "\\d" | "\\dt" => return self.simple(&relations(argument)).await,
            "\\di" => return self.simple(INDEXES).await,
            "\\dn" => return self.simple(SCHEMAS).await,
            "\\du" => return self.simple(ROLES).await,
            "\\l" => return self.simple(DATABASES).await,
            other => {
                eprintln!("unknown command {other}: try \\?");
                return false;
            }
        }
        true
    }

    async fn describe(&mut self, name: &str) -> bool {
        let (schema, table) = match name.split_once('.') {
            Some((schema, table)) => (Some(identifier(schema)), identifier(table)),
            None => (None, identifier(name)),
        };
        match self.exists(&relation(schema.as_deref(), &table)).await {
            Some(true) => println!("Table \"{name}\""),
            Some(false) => {
                eprintln!("Did not find any relation named \"{name}\".");
                return false;
            }
            None => return false,
        }
        self.simple(&columns(schema.as_deref(), &table)).await
            && self.simple(&indexes_of(schema.as_deref(), &table)).await
    }
}

const INDEXES: &str = "SELECT schemaname AS \"Schema\", indexname AS \"Name\", \
     tablename AS \"Table\" FROM pg_catalog.pg_indexes \
     WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2";
const SCHEMAS: &str = "SELECT nspname AS \"Name\" FROM pg_catalog.pg_namespace WHERE nspname <> 'pg_catalog' \
     AND nspname <> 'information_schema' ORDER BY 1";
const ROLES: &str = "SELECT rolname AS \"Role name\", rolsuper AS \"Superuser\" \
     FROM pg_catalog.pg_roles ORDER BY 1";
const DATABASES: &str = "SELECT datname AS \"Name\", datcollate AS \"Collate\", \
     datctype AS \"Ctype\" FROM pg_catalog.pg_database ORDER BY 1";

fn relations(name: &str) -> String {
    let filter = if name.is_empty() {
        String::new()
    } else {
        format!(" AND tablename = {}", literal(&identifier(name)))
    };
    format!(
        "SELECT schemaname AS \"Schema\", tablename AS \"Name\", 'table' AS \"Type\", \
         tableowner AS \"Owner\" FROM pg_catalog.pg_tables \
         WHERE schemaname NOT IN ('pg_catalog', 'information_schema'){filter} ORDER BY 1, 2"
    )
}

fn relation(schema: Option<&str>, table: &str) -> String {
    format!(
        "SELECT c.oid FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = {}{}",
        literal(table),
        schema_filter("n.nspname", schema)
    )
}

fn columns(schema: Option<&str>, table: &str) -> String {
    format!(
        "SELECT a.attname AS \"Column\", format_type(a.atttypid, a.atttypmod) AS \"Type\", \
         CASE WHEN a.attnotnull THEN 'not null' ELSE '' END AS \"Nullable\", \
         coalesce(pg_get_expr(d.adbin, d.adrelid), '') AS \"Default\" \
         FROM pg_catalog.pg_attribute a \
         JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         WHERE c.relname = {} AND a.attnum > 0 AND NOT a.attisdropped{} ORDER BY a.attnum",
        literal(table),
        schema_filter("n.nspname", schema)
    )
}

fn indexes_of(schema: Option<&str>, table: &str) -> String {
    format!(
        "SELECT indexname AS \"Index\", indexdef AS \"Definition\" FROM pg_catalog.pg_indexes \
         WHERE tablename = {}{} ORDER BY 1",
        literal(table),
        schema_filter("schemaname", schema)
    )
}

fn schema_filter(column: &str, schema: Option<&str>) -> String {
    schema.map_or_else(String::new, |schema| {
        format!(" AND {column} = {}", literal(schema))
    })
}

/// A name as SQL reads it: folded to lower case unless quoted.
fn identifier(name: &str) -> String {
    match name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => name.to_lowercase(),
    }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_sql() {
        assert_eq!(literal(&identifier("O'Brien")), "'o''brien'");
        assert_eq!(identifier("\"Mixed\"\"Case\""), "Mixed\"Case");
    }
}
