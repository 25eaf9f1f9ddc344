//! Simple scalar expressions, evaluated on values without DataFusion: literals,
//! parameters, columns, checked arithmetic, casts, the clock. Whatever is not
//! understood here ([`super::compile`] answers `None`) goes to the query engine; what is
//! understood has PostgreSQL's types and errors.

use crate::error::{Result, SqlError};
use crate::settings::Settings;
use lineradb_common::sql::{Datum, SqlType, ValueError};

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
pub(super) fn without_modifier(t: SqlType) -> SqlType {
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

pub(super) fn negate(d: Datum) -> Result<Datum, ValueError> {
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
