//! How results look: aligned as in psql, expanded (`\x`), or JSON. Pure.

use serde_json::{Map, Value};
use std::fmt::Write;
use tokio_postgres::types::Type;

/// One result set, as text.
#[derive(Debug, Default)]
pub struct Table {
    /// Column names.
    pub columns: Vec<String>,
    /// Their types, when known.
    pub types: Vec<Option<Type>>,
    /// Rows of values; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

/// What NULL looks like on the terminal, told from an empty string.
const NULL: &str = "NULL";

impl Table {
    /// The table as psql draws it, numbers to the right, with a row count.
    pub fn aligned(&self) -> String {
        let cells: Vec<Vec<Vec<&str>>> = self
            .rows
            .iter()
            .map(|row| {
                row.iter()
                    .map(|value| value.as_deref().unwrap_or(NULL).split('\n').collect())
                    .collect()
            })
            .collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                cells
                    .iter()
                    .flat_map(|row| row.get(column).into_iter().flatten())
                    .map(|line| width(line))
                    .chain([width(&self.columns[column])])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let right: Vec<bool> = (0..self.columns.len())
            .map(|column| self.is_number(column))
            .collect();
        let mut out = String::new();
        for (column, name) in self.columns.iter().enumerate() {
            let space = widths[column] - width(name);
            let left = space / 2;
            let _ = write!(
                out,
                "{}{:left$}{name}{:rest$}",
                if column == 0 { " " } else { "| " },
                "",
                "",
                rest = space - left + usize::from(column + 1 < widths.len()),
            );
        }
        trim_line(&mut out);
        for (column, width) in widths.iter().enumerate() {
            out.push_str(if column == 0 { "-" } else { "+-" });
            out.extend(std::iter::repeat_n(
                '-',
                width + usize::from(column + 1 < widths.len()),
            ));
        }
        if !widths.is_empty() {
            out.push('-');
        }
        out.push('\n');
        for row in &cells {
            for line in 0..row.iter().map(Vec::len).max().unwrap_or(1) {
                for (column, cell) in row.iter().enumerate() {
                    let text = cell.get(line).copied().unwrap_or("");
                    let more = if line + 1 < cell.len() { "+" } else { " " };
                    let space = widths[column] - width(text);
                    let (before, after) = if right[column] {
                        (space, 0)
                    } else {
                        (0, space)
                    };
                    let _ = write!(
                        out,
                        "{}{:before$}{text}{:after$}{}",
                        if column == 0 { " " } else { "| " },
                        "",
                        "",
                        more
                    );
                }
                trim_line(&mut out);
            }
        }
        let count = self.rows.len();
        let _ = writeln!(out, "({count} row{})", if count == 1 { "" } else { "s" });
        out
    }

    /// One line per value, as `\x` of psql.
    pub fn expanded(&self) -> String {
        let names = self.columns.iter().map(|name| width(name)).max();
        let names = names.unwrap_or(0);
        let mut out = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let _ = writeln!(out, "-[ RECORD {} ]-", number + 1);
            for (name, value) in self.columns.iter().zip(row) {
                let _ = writeln!(
                    out,
                    "{name}{:space$} | {}",
                    "",
                    value.as_deref().unwrap_or(NULL),
                    space = names - width(name)
                );
            }
        }
        if self.rows.is_empty() {
            out.push_str("(0 rows)\n");
        }
        out
    }

    /// An array of objects. What JSON numbers cannot hold exactly (integers
    /// beyond 2^53, numeric, NaN, infinities) stays a string, as in the HTTP
    /// interface.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let mut object = Map::new();
            for (column, name) in self.columns.iter().enumerate() {
                let kind = self.types.get(column).and_then(Option::as_ref);
                let value = row.get(column).and_then(Option::as_deref);
                object.insert(name.clone(), json_value(value, kind));
            }
            Value::Object(object)
        });
        Value::Array(rows.collect())
    }

    fn is_number(&self, column: usize) -> bool {
        match self.types.get(column) {
            Some(Some(kind)) => matches!(
                *kind,
                Type::INT2
                    | Type::INT4
                    | Type::INT8
                    | Type::FLOAT4
                    | Type::FLOAT8
                    | Type::NUMERIC
                    | Type::OID
            ),
            // The simple protocol names no types to this client.
            _ => {
                let mut values = self
                    .rows
                    .iter()
                    .filter_map(|row| row.get(column)?.as_deref())
                    .peekable();
                values.peek().is_some() && values.all(|value| value.parse::<f64>().is_ok())
            }
        }
    }
}

fn json_value(value: Option<&str>, kind: Option<&Type>) -> Value {
    const EXACT: i64 = 1 << 53;
    let Some(text) = value else {
        return Value::Null;
    };
    let parsed = match kind {
        Some(&Type::BOOL) => Some(Value::Bool(text == "t")),
        Some(&(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID)) => text
            .parse::<i64>()
            .ok()
            .filter(|n| (-EXACT..=EXACT).contains(n))
            .map(Value::from),
        Some(&(Type::FLOAT4 | Type::FLOAT8)) => text
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map(Value::Number),
        Some(&(Type::JSON | Type::JSONB)) => serde_json::from_str(text).ok(),
        _ => None,
    };
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn trim_line(out: &mut String) {
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        Table {
            columns: vec!["id".into(), "name".into()],
            types: vec![Some(Type::INT8), Some(Type::TEXT)],
            rows: vec![
                vec![Some("1".into()), Some("Ada".into())],
                vec![Some("10".into()), None],
            ],
        }
    }

    #[test]
    fn tables_look_like_psqls() {
        assert_eq!(
            sample().aligned(),
            " id | name\n----+------\n  1 | Ada\n 10 | NULL\n(2 rows)\n"
        );
    }

    #[test]
    fn json_keeps_what_a_number_cannot_hold() {
        let mut table = sample();
        table.rows[1][0] = Some("9007199254740993".into());
        assert_eq!(
            table.json().to_string(),
            r#"[{"id":1,"name":"Ada"},{"id":"9007199254740993","name":null}]"#
        );
    }

    #[test]
    fn expanded_rows() {
        assert_eq!(
            sample().expanded(),
            "-[ RECORD 1 ]-\nid   | 1\nname | Ada\n-[ RECORD 2 ]-\nid   | 10\nname | NULL\n"
        );
    }
}
