//! From syntax trees to simple expressions, typed as PostgreSQL types them.

use super::scalar::{
    Clock, Operator, ParameterTypes, Scalar, Scope, Typed, negate, without_modifier,
};
use crate::statement::{ident, sql_type};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CastKind, Expr, FunctionArguments, UnaryOperator, Value,
};
use lineradb_common::sql::{Datum, Numeric, SqlType};

/// Compiles an expression. `hint` is the type that its place asks for: literals
/// and parameters without a type of their own take it.
pub fn compile(
    expr: &Expr,
    scope: &Scope,
    parameters: &mut ParameterTypes,
    hint: Option<SqlType>,
) -> Option<Typed> {
    let typed = |expr, sql_type| Some(Typed { expr, sql_type });
    match expr {
        Expr::Nested(inner) => compile(inner, scope, parameters, hint),
        Expr::Identifier(name) => {
            let c = scope.find(None, &ident(name))?;
            typed(Scalar::Column(c.position), c.sql_type)
        }
        Expr::CompoundIdentifier(parts) => match &parts[..] {
            [q, name] => {
                let c = scope.find(Some(&ident(q)), &ident(name))?;
                typed(Scalar::Column(c.position), c.sql_type)
            }
            _ => None,
        },
        Expr::Value(v) => match &v.value {
            Value::Null => typed(Scalar::Const(Datum::Null), hint.unwrap_or(SqlType::Text)),
            Value::Boolean(b) => typed(Scalar::Const(Datum::Bool(*b)), SqlType::Bool),
            Value::Number(text, _) => {
                let d = number(text)?;
                let t = d.sql_type()?;
                typed(Scalar::Const(d), t)
            }
            Value::SingleQuotedString(text) => {
                let constant = Scalar::Const(Datum::Text(text.clone()));
                match hint {
                    // Read when it is run: the text may depend on the time zone.
                    Some(t) if !t.is_text() => typed(
                        Scalar::Cast(Box::new(constant), without_modifier(t)),
                        without_modifier(t),
                    ),
                    _ => typed(constant, SqlType::Text),
                }
            }
            Value::Placeholder(name) => {
                let at = placeholder(name)?;
                let t = parameters.resolve(at, hint)?;
                typed(Scalar::Parameter(at), t)
            }
            _ => None,
        },
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr,
        } => {
            let inner = compile(expr, scope, parameters, hint)?;
            let t = inner.sql_type;
            match inner.expr {
                _ if !t.is_number() => None,
                Scalar::Const(d) => typed(Scalar::Const(negate(d).ok()?), t),
                other => typed(Scalar::Negate(Box::new(other)), t),
            }
        }
        Expr::UnaryOp {
            op: UnaryOperator::Plus,
            expr,
        } => compile(expr, scope, parameters, hint).filter(|t| t.sql_type.is_number()),
        Expr::BinaryOp { left, op, right } => {
            let op = match op {
                BinaryOperator::Plus => Operator::Add,
                BinaryOperator::Minus => Operator::Subtract,
                BinaryOperator::Multiply => Operator::Multiply,
                BinaryOperator::Divide => Operator::Divide,
                BinaryOperator::Modulo => Operator::Modulo,
                _ => return None,
            };
            arithmetic(op, left, right, scope, parameters)
        }
        Expr::Cast {
            kind: CastKind::Cast | CastKind::DoubleColon,
            expr,
            data_type,
            format: None,
            array: false,
        } => {
            let t = sql_type(data_type).ok()?;
            if matches!(t, SqlType::Array(_)) || !t.is_storable() {
                return None;
            }
            let inner = compile(expr, scope, parameters, Some(t))?;
            // Floats to integers and the like round as `Datum::cast` does.
            if !castable(inner.sql_type, t) {
                return None;
            }
            typed(Scalar::Cast(Box::new(inner.expr), t), t)
        }
        Expr::TypedString(s) if !s.uses_odbc_syntax => {
            let t = sql_type(&s.data_type).ok()?;
            match &s.value.value {
                Value::SingleQuotedString(text) if t.is_storable() => typed(
                    Scalar::Cast(Box::new(Scalar::Const(Datum::Text(text.clone()))), t),
                    t,
                ),
                _ => None,
            }
        }
        Expr::Function(f) => {
            let no_arguments = match &f.args {
                FunctionArguments::None => true,
                FunctionArguments::List(l) => l.args.is_empty() && l.clauses.is_empty(),
                FunctionArguments::Subquery(_) => false,
            };
            if !no_arguments || f.over.is_some() || f.filter.is_some() {
                return None;
            }
            let (_, name) = crate::statement::object_name(&f.name).ok()?;
            let clock = |c| Scalar::Clock(c);
            let cast = |c, t| Scalar::Cast(Box::new(Scalar::Clock(c)), t);
            match name.as_str() {
                "now" | "current_timestamp" | "transaction_timestamp" => {
                    typed(clock(Clock::Transaction), SqlType::TimestampTz)
                }
                "statement_timestamp" => typed(clock(Clock::Statement), SqlType::TimestampTz),
                "clock_timestamp" => typed(clock(Clock::Wall), SqlType::TimestampTz),
                "localtimestamp" => typed(
                    cast(Clock::Transaction, SqlType::Timestamp),
                    SqlType::Timestamp,
                ),
                "current_date" => typed(cast(Clock::Transaction, SqlType::Date), SqlType::Date),
                "localtime" => typed(cast(Clock::Transaction, SqlType::Time), SqlType::Time),
                "gen_random_uuid" => typed(Scalar::RandomUuid, SqlType::Uuid),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The number of `$n`, from 0.
pub fn placeholder(name: &str) -> Option<usize> {
    name.strip_prefix('$')?
        .parse::<usize>()
        .ok()?
        .checked_sub(1)
        .filter(|n| *n < 65_535)
}

fn number(text: &str) -> Option<Datum> {
    if let Ok(v) = text.parse::<i32>() {
        return Some(Datum::Int4(v));
    }
    if let Ok(v) = text.parse::<i64>() {
        return Some(Datum::Int8(v));
    }
    Numeric::parse(text).ok().map(Datum::Numeric)
}

fn castable(from: SqlType, to: SqlType) -> bool {
    from.is_text()
        || from.is_number() && to.is_number()
        || from == to
        || matches!(
            (from, to),
            (
                SqlType::Timestamp | SqlType::TimestampTz | SqlType::Date,
                SqlType::Timestamp | SqlType::TimestampTz | SqlType::Date
            )
        )
}

fn arithmetic(
    op: Operator,
    left: &Expr,
    right: &Expr,
    scope: &Scope,
    parameters: &mut ParameterTypes,
) -> Option<Typed> {
    // A side without a type takes the other's.
    let (l, r) = match compile(left, scope, parameters, None) {
        Some(l) if !is_unknown(left, &l) => {
            let r = compile(right, scope, parameters, Some(l.sql_type))?;
            (l, r)
        }
        _ => {
            let r = compile(right, scope, parameters, None)?;
            let l = compile(left, scope, parameters, Some(r.sql_type))?;
            (l, r)
        }
    };
    let t = result_type(l.sql_type, r.sql_type)?;
    match (op, t) {
        (Operator::Divide, SqlType::Numeric(_)) => return None,
        (Operator::Modulo, t) if !t.is_integer() => return None,
        _ => {}
    }
    Some(Typed {
        expr: Scalar::Arithmetic(op, Box::new(l.expr), Box::new(r.expr), t),
        sql_type: t,
    })
}

/// True for a quoted literal or NULL, whose type its neighbour decides.
fn is_unknown(expr: &Expr, typed: &Typed) -> bool {
    matches!(
        expr,
        Expr::Value(v) if matches!(v.value, Value::SingleQuotedString(_) | Value::Null)
    ) && typed.sql_type == SqlType::Text
}

/// PostgreSQL's type of arithmetic on two numbers.
fn result_type(a: SqlType, b: SqlType) -> Option<SqlType> {
    use SqlType::*;
    Some(match (a, b) {
        (Float4, Float4) => Float4,
        (Float4 | Float8, b) if b.is_number() => Float8,
        (a, Float4 | Float8) if a.is_number() => Float8,
        (Numeric(_), b) if b.is_number() => Numeric(None),
        (a, Numeric(_)) if a.is_number() => Numeric(None),
        (Int8, b) if b.is_integer() => Int8,
        (a, Int8) if a.is_integer() => Int8,
        (Int4, Int2 | Int4) | (Int2, Int4) => Int4,
        (Int2, Int2) => Int2,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::scalar::{ScopeColumn, Values};
    use crate::settings::Settings;
    use crate::statement::parse_expr;

    fn scope() -> Scope {
        let column = |name: &str, sql_type, position| ScopeColumn {
            qualifier: "t".into(),
            name: name.into(),
            sql_type,
            position,
        };
        Scope {
            columns: vec![
                column("a", SqlType::Int4, 0),
                column("s", SqlType::Int2, 1),
                column("n", SqlType::Numeric(Some((10, 2))), 2),
                column("ts", SqlType::Timestamp, 3),
            ],
        }
    }

    fn run(sql: &str, parameters: &[Datum]) -> Result<Datum, String> {
        let mut types = ParameterTypes::default();
        let typed = compile(&parse_expr(sql).unwrap(), &scope(), &mut types, None)
            .unwrap_or_else(|| panic!("{sql} is simple"));
        let row = [
            Datum::Int4(2_000_000_000),
            Datum::Int2(7),
            Datum::Numeric(Numeric::parse("1.50").unwrap()),
            Datum::Null,
        ];
        typed
            .expr
            .evaluate(&Values {
                parameters,
                row: &row,
                settings: &Settings::default(),
            })
            .map_err(|e| e.sqlstate)
    }

    #[test]
    fn arithmetic_is_checked_and_typed_as_in_postgresql() {
        assert_eq!(run("a + 1", &[]), Ok(Datum::Int4(2_000_000_001)));
        assert_eq!(run("a + a", &[]), Err("22003".into()));
        assert_eq!(run("a * 10000000000", &[]), Err("22003".into()));
        assert_eq!(run("a + 10000000000", &[]), Ok(Datum::Int8(12_000_000_000)));
        assert_eq!(run("t.s / 2", &[]), Ok(Datum::Int4(3)));
        assert_eq!(run("s / 0", &[]), Err("22012".into()));
        assert_eq!(run("-s % 2", &[]), Ok(Datum::Int4(-1)));
        assert_eq!(
            run("n * 2", &[]),
            Ok(Datum::Numeric(Numeric::parse("3").unwrap()))
        );
        assert_eq!(run("a + NULL", &[]), Ok(Datum::Null));
        assert_eq!(run("'5' + a", &[]), Ok(Datum::Int4(2_000_000_005)));
    }

    #[test]
    fn parameters_take_the_type_of_their_place() {
        let mut types = ParameterTypes::default();
        let e = parse_expr("a + $2").unwrap();
        compile(&e, &scope(), &mut types, None).unwrap();
        assert_eq!(types.types, vec![None, Some(SqlType::Int4)]);
        assert_eq!(
            run("a - $1", &[Datum::Int4(1)]),
            Ok(Datum::Int4(1_999_999_999))
        );
        let mut types = ParameterTypes::default();
        assert!(compile(&parse_expr("$1").unwrap(), &scope(), &mut types, None).is_none());
    }

    #[test]
    fn casts_and_typed_strings() {
        assert_eq!(run("'12'::int", &[]), Ok(Datum::Int4(12)));
        assert_eq!(run("CAST('x' AS int)", &[]), Err("22P02".into()));
        assert_eq!(run("DATE '1970-01-02'", &[]), Ok(Datum::Date(1)));
        assert_eq!(run("2.5::int", &[]), Ok(Datum::Int4(3)));
        assert_eq!(run("current_timestamp", &[]), Ok(Datum::TimestampTz(0)));
    }

    #[test]
    fn what_is_not_simple_is_left_alone() {
        for sql in ["upper('x')", "a > 1", "(SELECT 1)", "n / 2", "nope", "x.a"] {
            let e = parse_expr(sql).unwrap();
            assert!(
                compile(&e, &scope(), &mut ParameterTypes::default(), None).is_none(),
                "{sql}"
            );
        }
    }
}
