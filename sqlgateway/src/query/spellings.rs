//! Functions and subscripts that the engine knows under the same name with another
//! meaning, as what it has for PostgreSQL's.

use super::rewrite::{call, literal, name_of, parse_expression, take};
use crate::error::Result;
use datafusion::sql::sqlparser::ast::{
    AccessExpr, BinaryOperator, CastKind, DataType, Expr, FunctionArg, FunctionArgExpr,
    FunctionArguments, Subscript, Value, ValueWithSpan, VisitMut, VisitorMut,
};
use std::ops::ControlFlow;

/// Rewrites one expression, whose parts are rewritten.
pub(super) fn respell(expr: &mut Expr) -> Result<()> {
    match expr {
        Expr::Function(function) => {
            let name = name_of(&function.name);
            let FunctionArguments::List(list) = &mut function.args else {
                return Ok(());
            };
            let mut args: Vec<&mut Expr> = Vec::with_capacity(list.args.len());
            for arg in &mut list.args {
                match arg {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)) => args.push(arg),
                    _ => return Ok(()),
                }
            }
            if let Some(spelled) = function_call(&name, &mut args)? {
                *expr = spelled;
            }
        }
        Expr::CompoundFieldAccess { root, access_chain } => {
            if let [AccessExpr::Subscript(subscript)] = &mut access_chain[..] {
                match subscript {
                    Subscript::Index { index } if !is_positive(index) => {
                        let (array, index) = (root.as_ref().clone(), take(index));
                        *expr = template(
                            "CASE WHEN _index >= 1 THEN (_array)[_index] END",
                            &[("_index", index), ("_array", array)],
                        )?;
                    }
                    Subscript::Slice {
                        lower_bound: Some(lower),
                        upper_bound: Some(upper),
                        stride: None,
                    } => {
                        // Nothing is outside of the array; the engine counts from its end.
                        for (bound, least) in [(lower, "1"), (upper, "0")] {
                            if !is_positive(bound) {
                                let least = Expr::value(Value::Number(least.into(), false));
                                *bound = call("greatest", vec![take(bound), least]);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        // An array that nothing is appended to.
        Expr::BinaryOp {
            left,
            op: BinaryOperator::StringConcat,
            right,
        } => {
            if is_array(left) && is_null(right) {
                *expr = take(left);
            } else if is_null(left) && is_array(right) {
                *expr = take(right);
            }
        }
        _ => {}
    }
    Ok(())
}

fn function_call(name: &str, args: &mut [&mut Expr]) -> Result<Option<Expr>> {
    Ok(match (name, args) {
        ("array_remove", args) => Some(call("array_remove_all", take_all(args))),
        ("array_replace", args) => Some(call("array_replace_all", take_all(args))),
        // An empty array has no dimensions.
        ("array_length", [array, dimension]) => Some(template(
            "nullif(array_length(_array, _dimension), 0)",
            &[("_array", take(array)), ("_dimension", take(dimension))],
        )?),
        ("timezone", [zone, _]) => {
            **zone = posix_zone(take(zone))?;
            None
        }
        ("regexp_replace", [_, pattern, replacement, ..]) => {
            **pattern = call("pg_regex_pattern", vec![take(pattern)]);
            **replacement = replaced_by(take(replacement));
            None
        }
        ("regexp_match" | "regexp_like" | "regexp_count" | "regexp_instr", [_, pattern, ..]) => {
            **pattern = call("pg_regex_pattern", vec![take(pattern)]);
            None
        }
        ("encode", [bytes, format]) => {
            if literal(bytes).is_some() {
                **bytes = Expr::Cast {
                    kind: CastKind::Cast,
                    expr: Box::new(take(bytes)),
                    data_type: DataType::Bytea,
                    array: false,
                    format: None,
                };
            }
            match literal(format) {
                // Lines of 76 characters (RFC 2045).
                Some(format) if format.eq_ignore_ascii_case("base64") => Some(template(
                    "rtrim(regexp_replace(encode(_bytes, 'base64pad'), '(.{76})', '\\1\n', 'g'), '\n')",
                    &[("_bytes", take(bytes))],
                )?),
                _ => None,
            }
        }
        _ => None,
    })
}

fn take_all(args: &mut [&mut Expr]) -> Vec<Expr> {
    args.iter_mut().map(|arg| take(arg)).collect()
}

/// An expression from text, with others in place of some names.
fn template(sql: &str, values: &[(&str, Expr)]) -> Result<Expr> {
    struct Fill<'a>(&'a [(&'a str, Expr)]);
    impl VisitorMut for Fill<'_> {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::Identifier(name) = expr
                && let Some((_, value)) = self.0.iter().find(|(of, _)| *of == name.value)
            {
                *expr = Expr::Nested(Box::new(value.clone()));
            }
            ControlFlow::Continue(())
        }
    }
    let mut expr = parse_expression(sql)?;
    let _ = expr.visit(&mut Fill(values));
    Ok(expr)
}

/// The name of a zone as it is written for SET: AT TIME ZONE reads the signs of offsets
/// as POSIX does, west of Greenwich is positive.
fn posix_zone(zone: Expr) -> Result<Expr> {
    let turned = match literal(&zone).map(|zone| zone.split_at_checked(1)) {
        Some(Some(("+", rest))) if rest.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("-{rest}")
        }
        Some(Some(("-", rest))) if rest.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("+{rest}")
        }
        Some(_) => return Ok(zone),
        None if matches!(zone, Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => {
            return template(
                "CASE WHEN left(_zone, 1) IN ('+', '-') \
                 THEN translate(left(_zone, 1), '+-', '-+') || substr(_zone, 2) ELSE _zone END",
                &[("_zone", zone)],
            );
        }
        None => return Ok(zone),
    };
    Ok(Expr::value(Value::SingleQuotedString(turned)))
}

/// The replacement of a regular expression: a dollar is itself, `\&` all that was
/// found, `\1` a group, `\\` a backslash.
fn replaced_by(replacement: Expr) -> Expr {
    let Some(text) = literal(&replacement) else {
        let text = |text: &str| Expr::value(Value::SingleQuotedString(text.to_owned()));
        let dollars = call("replace", vec![replacement, text("$"), text("$$")]);
        return call("replace", vec![dollars, text("\\&"), text("${0}")]);
    };
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('&') => out.push_str("${0}"),
                Some(group) if group.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(group);
                    out.push('}');
                }
                Some('\\') | None => out.push('\\'),
                Some(other) => out.extend(['\\', other]),
            },
            other => out.push(other),
        }
    }
    Expr::value(Value::SingleQuotedString(out))
}

/// A number that is written without a sign, and is not 0.
fn is_positive(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(ValueWithSpan { value: Value::Number(digits, _), .. })
        if !digits.trim_start_matches('0').is_empty())
}

fn is_null(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Value(ValueWithSpan {
            value: Value::Null,
            ..
        })
    )
}

fn is_array(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_array(inner),
        Expr::Array(_) => true,
        Expr::Cast { data_type, .. } => matches!(data_type, DataType::Array(_)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_get_the_engines_names() {
        for (sql, expected) in [
            ("array_remove(a, 1)", "array_remove_all(a, 1)"),
            ("a[2]", "a[2]"),
            ("a[i]", "CASE WHEN (i) >= 1 THEN ((a))[(i)] END"),
            ("a[1:3]", "a[1:3]"),
            ("a[-1:i]", "a[greatest(-1, 1):greatest(i, 0)]"),
            ("ARRAY[1] || NULL", "ARRAY[1]"),
            ("timezone('+05:30', t)", "timezone('-05:30', t)"),
            ("timezone('UTC', t)", "timezone('UTC', t)"),
            (
                r"regexp_replace(t, 'a', '$1\\\&\2x')",
                r"regexp_replace(t, pg_regex_pattern('a'), '$$1\${0}${2}x')",
            ),
            ("length(t)", "length(t)"),
        ] {
            let mut expr = parse_expression(sql).expect(sql);
            respell(&mut expr).expect(sql);
            assert_eq!(expr.to_string(), expected);
        }
    }
}
