//! Simple scalar expressions, evaluated on values without DataFusion: literals,
//! parameters, columns, checked arithmetic, casts, the clock. Whatever is not
//! understood here ([`compile`] answers `None`) goes to the query engine; what is
//! understood has PostgreSQL's types and errors.

use crate::error::{Result, SqlError};
use crate::settings::Settings;
use crate::statement::{ident, sql_type};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CastKind, Expr, FunctionArguments, UnaryOperator, Value,
};
use lineradb_common::sql::{Datum, Numeric, SqlType, ValueError};

/// A column that an expression may name.
#[derive(Clone, Debug)]
pub struct ScopeColumn {
    /// Table name or alias.
    pub qualifier: String,
    /// Its name.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// Where its value is in the row.
    pub position: usize,
}

/// The columns that an expression may name.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// In order; hidden ones left out.
    pub columns: Vec<ScopeColumn>,
}

impl Scope {
    /// The column of a name; `None`: there is none, or several.
    pub fn find(&self, qualifier: Option<&str>, name: &str) -> Option<&ScopeColumn> {
        let mut found = self
            .columns
            .iter()
            .filter(|c| c.name == name && qualifier.is_none_or(|q| q == c.qualifier));
        match (found.next(), found.next()) {
            (Some(c), None) => Some(c),
            _ => None,
        }
    }
}

/// Types of the parameters, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct ParameterTypes {
    /// `None`: not known yet.
    pub types: Vec<Option<SqlType>>,
}

impl ParameterTypes {
    /// With what the client declared.
    pub fn new(declared: &[Option<SqlType>]) -> Self {
        ParameterTypes {
            types: declared
                .iter()
                .map(|t| t.filter(|t| *t != SqlType::Unknown))
                .collect(),
        }
    }

    /// The type of parameter `at` (from 0), which takes `hint` if it had none.
    pub fn resolve(&mut self, at: usize, hint: Option<SqlType>) -> Option<SqlType> {
        if self.types.len() <= at {
            self.types.resize(at + 1, None);
        }
        if self.types[at].is_none() {
            self.types[at] = hint.map(without_modifier);
        }
        self.types[at]
    }

    /// Takes over what a part of the statement found out.
    pub fn merge(&mut self, types: &[SqlType]) {
        for (at, t) in types.iter().enumerate() {
            self.resolve(at, Some(*t).filter(|t| *t != SqlType::Unknown));
        }
    }

    /// All types; those never found out are text.
    pub fn finish(&self) -> Vec<SqlType> {
        self.types
            .iter()
            .map(|t| t.unwrap_or(SqlType::Text))
            .collect()
    }
}

/// A parameter has no length or precision.
fn without_modifier(t: SqlType) -> SqlType {
    match t {
        SqlType::Varchar(_) | SqlType::Char(_) => SqlType::Text,
        SqlType::Numeric(_) => SqlType::Numeric(None),
        other => other,
    }
}

/// Which clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// When the transaction began.
    Transaction,
    /// When the statement began.
    Statement,
    /// Now.
    Wall,
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// A value.
    Const(Datum),
    /// `$n`, from 0.
    Parameter(usize),
    /// A column's value, by position in the row.
    Column(usize),
    /// Arithmetic in the type given.
    Arithmetic(Operator, Box<Scalar>, Box<Scalar>, SqlType),
    /// The negative.
    Negate(Box<Scalar>),
    /// CAST
    Cast(Box<Scalar>, SqlType),
    /// A clock, as `timestamptz`.
    Clock(Clock),
    /// `gen_random_uuid()`
    RandomUuid,
}

/// An operator of arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`, not of numerics
    Divide,
    /// `%`, of integers
    Modulo,
}

/// An expression and its type.
#[derive(Clone, Debug, PartialEq)]
pub struct Typed {
    /// The expression.
    pub expr: Scalar,
    /// Its type.
    pub sql_type: SqlType,
}

impl Typed {
    /// True when a value may have more digits than a bare `numeric` column of a
    /// result holds; the query engine gives such results a scale of their own.
    pub fn may_need_more_digits(&self) -> bool {
        matches!(self.sql_type, SqlType::Numeric(None)) && !matches!(self.expr, Scalar::Column(_))
    }
}

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

/// What expressions are evaluated on.
pub struct Values<'a> {
    /// `$1`, `$2`, ...
    pub parameters: &'a [Datum],
    /// The row.
    pub row: &'a [Datum],
    /// Clocks and time zone.
    pub settings: &'a Settings,
}

impl Scalar {
    /// The value.
    ///
    /// # Errors
    /// 22003, 22012, 22P02 and the like.
    pub fn evaluate(&self, v: &Values<'_>) -> Result<Datum> {
        Ok(match self {
            Scalar::Const(d) => d.clone(),
            Scalar::Parameter(at) => v.parameters.get(*at).cloned().ok_or_else(|| {
                SqlError::new("08P01", format!("parameter ${} was not given", at + 1))
            })?,
            Scalar::Column(at) => v.row[*at].clone(),
            Scalar::Negate(inner) => negate(inner.evaluate(v)?)?,
            Scalar::Cast(inner, t) => inner.evaluate(v)?.cast(*t, &v.settings.time_zone)?,
            Scalar::Clock(Clock::Transaction) => Datum::TimestampTz(v.settings.transaction_time_us),
            Scalar::Clock(Clock::Statement) => Datum::TimestampTz(v.settings.statement_time_us),
            Scalar::Clock(Clock::Wall) => {
                Datum::TimestampTz(lineradb_common::clock::wall_clock_us() as i64)
            }
            Scalar::RandomUuid => Datum::Uuid(lineradb_common::random::uuid().into_bytes()),
            Scalar::Arithmetic(op, l, r, t) => {
                let (l, r) = (l.evaluate(v)?, r.evaluate(v)?);
                if l.is_null() || r.is_null() {
                    Datum::Null
                } else {
                    calculate(*op, &l, &r, *t)?
                }
            }
        })
    }

    /// True when the value is the same for every row and execution.
    pub fn is_constant(&self) -> bool {
        match self {
            Scalar::Const(_) => true,
            Scalar::Negate(e) => e.is_constant(),
            Scalar::Cast(e, t) => {
                e.is_constant()
                    && !matches!(t, SqlType::TimestampTz | SqlType::Date | SqlType::Timestamp)
            }
            Scalar::Arithmetic(_, a, b, _) => a.is_constant() && b.is_constant(),
            _ => false,
        }
    }
}

fn negate(d: Datum) -> Result<Datum, ValueError> {
    let range = |t: &str| ValueError::out_of_range(t);
    Ok(match d {
        Datum::Int2(v) => Datum::Int2(v.checked_neg().ok_or_else(|| range("smallint"))?),
        Datum::Int4(v) => Datum::Int4(v.checked_neg().ok_or_else(|| range("integer"))?),
        Datum::Int8(v) => Datum::Int8(v.checked_neg().ok_or_else(|| range("bigint"))?),
        Datum::Float4(v) => Datum::Float4(-v),
        Datum::Float8(v) => Datum::Float8(-v),
        Datum::Numeric(n) => Datum::Numeric(n.negated()),
        other => other,
    })
}

fn division_by_zero() -> SqlError {
    SqlError::new("22012", "division by zero")
}

fn calculate(op: Operator, l: &Datum, r: &Datum, t: SqlType) -> Result<Datum> {
    match t {
        SqlType::Int2 | SqlType::Int4 | SqlType::Int8 => {
            let wrong = || SqlError::internal("arithmetic on values of other types");
            let (a, b) = (l.as_i64().ok_or_else(wrong)?, r.as_i64().ok_or_else(wrong)?);
            if b == 0 && matches!(op, Operator::Divide | Operator::Modulo) {
                return Err(division_by_zero());
            }
            let v = match op {
                Operator::Add => a.checked_add(b),
                Operator::Subtract => a.checked_sub(b),
                Operator::Multiply => a.checked_mul(b),
                Operator::Divide => a.checked_div(b),
                // MIN % -1 is 0, not an overflow.
                Operator::Modulo => Some(a.wrapping_rem(b)),
            };
            let range = || ValueError::out_of_range(&t.name());
            let v = v.ok_or_else(range)?;
            Ok(match t {
                SqlType::Int2 => Datum::Int2(v.try_into().map_err(|_| range())?),
                SqlType::Int4 => Datum::Int4(v.try_into().map_err(|_| range())?),
                _ => Datum::Int8(v),
            })
        }
        SqlType::Numeric(_) => {
            let wrong = || SqlError::internal("arithmetic on values of other types");
            let (a, b) = (
                l.as_exact().ok_or_else(wrong)?,
                r.as_exact().ok_or_else(wrong)?,
            );
            Ok(Datum::Numeric(match op {
                Operator::Add => a.plus(b)?,
                Operator::Subtract => a.minus(b)?,
                Operator::Multiply => a.times(b)?,
                Operator::Divide | Operator::Modulo => return Err(wrong()),
            }))
        }
        SqlType::Float4 | SqlType::Float8 => {
            let wrong = || SqlError::internal("arithmetic on values of other types");
            let (a, b) = (l.as_f64().ok_or_else(wrong)?, r.as_f64().ok_or_else(wrong)?);
            if b == 0.0 && op == Operator::Divide {
                return Err(division_by_zero());
            }
            let v = match op {
                Operator::Add => a + b,
                Operator::Subtract => a - b,
                Operator::Multiply => a * b,
                _ => a / b,
            };
            let narrow = if t == SqlType::Float4 {
                f64::from(v as f32)
            } else {
                v
            };
            if narrow.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(SqlError::new("22003", "value out of range: overflow"));
            }
            if narrow == 0.0
                && a != 0.0
                && matches!(op, Operator::Multiply | Operator::Divide)
                && b != 0.0
                && b.is_finite()
            {
                return Err(SqlError::new("22003", "value out of range: underflow"));
            }
            Ok(if t == SqlType::Float4 {
                Datum::Float4(v as f32)
            } else {
                Datum::Float8(v)
            })
        }
        _ => Err(SqlError::internal("arithmetic on values of other types")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
