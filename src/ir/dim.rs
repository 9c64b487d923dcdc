//! Sizes of axes: integers, or polynomials over named sizes such as `batch`.

use std::fmt;
use std::sync::Arc;

/// A symbol such as `batch`.
pub type Symbol = Arc<str>;

/// A size, exact: an integer or a polynomial with integer coefficients over symbols.
///
/// Arithmetic returns `None` where the result is not such a polynomial (an inexact division) or overflows.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    Int(i64),
    /// At least one term has a factor; terms are sorted by their factors and no coefficient is 0.
    Poly(Arc<[Term]>),
}

/// `coefficient * factors[0] * factors[1] * ...`, factors sorted.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    factors: Vec<Symbol>,
    coefficient: i64,
}

impl Dim {
    pub fn symbol(name: &str) -> Self {
        Self::Poly(Arc::new([Term { factors: vec![name.into()], coefficient: 1 }]))
    }

    pub fn int(&self) -> Option<i64> {
        match self {
            Self::Int(i) => Some(*i),
            Self::Poly(_) => None,
        }
    }

    fn terms(&self) -> Vec<Term> {
        match self {
            Self::Int(0) => vec![],
            Self::Int(i) => vec![Term { factors: vec![], coefficient: *i }],
            Self::Poly(terms) => terms.to_vec(),
        }
    }

    fn from_terms(mut terms: Vec<Term>) -> Option<Self> {
        terms.sort_by(|a, b| a.factors.cmp(&b.factors));
        let mut merged: Vec<Term> = Vec::with_capacity(terms.len());
        for term in terms {
            match merged.last_mut() {
                Some(last) if last.factors == term.factors => {
                    last.coefficient = last.coefficient.checked_add(term.coefficient)?;
                }
                _ => merged.push(term),
            }
        }
        merged.retain(|t| t.coefficient != 0);
        Some(match merged.as_slice() {
            [] => Self::Int(0),
            [t] if t.factors.is_empty() => Self::Int(t.coefficient),
            _ => Self::Poly(merged.into()),
        })
    }

    pub fn add(&self, other: &Self) -> Option<Self> {
        if let (Self::Int(a), Self::Int(b)) = (self, other) {
            return a.checked_add(*b).map(Self::Int);
        }
        let mut terms = self.terms();
        terms.extend(other.terms());
        Self::from_terms(terms)
    }

    pub fn sub(&self, other: &Self) -> Option<Self> {
        self.add(&other.mul(&Self::Int(-1))?)
    }

    pub fn mul(&self, other: &Self) -> Option<Self> {
        if let (Self::Int(a), Self::Int(b)) = (self, other) {
            return a.checked_mul(*b).map(Self::Int);
        }
        let (left, right) = (self.terms(), other.terms());
        // A hostile model could multiply polynomials until they fill the memory.
        if left.len() * right.len() > 64 {
            return None;
        }
        let mut terms = Vec::with_capacity(left.len() * right.len());
        for a in &left {
            for b in &right {
                let mut factors: Vec<Symbol> = a.factors.iter().chain(&b.factors).cloned().collect();
                if factors.len() > 16 {
                    return None;
                }
                factors.sort();
                terms.push(Term { factors, coefficient: a.coefficient.checked_mul(b.coefficient)? });
            }
        }
        Self::from_terms(terms)
    }

    /// The quotient where it is a polynomial: `self == quotient * other` for all values of the symbols.
    pub fn div_exact(&self, other: &Self) -> Option<Self> {
        if let (Self::Int(a), Self::Int(b)) = (self, other) {
            return (*b != 0 && a.checked_rem(*b)? == 0).then(|| Self::Int(a / b));
        }
        if self == other {
            return Some(Self::Int(1));
        }
        let divisor = other.terms();
        let [d] = divisor.as_slice() else { return None };
        let mut terms = self.terms();
        for term in &mut terms {
            if term.coefficient.checked_rem(d.coefficient)? != 0 {
                return None;
            }
            term.coefficient /= d.coefficient;
            for factor in &d.factors {
                let at = term.factors.iter().position(|f| f == factor)?;
                term.factors.remove(at);
            }
        }
        Self::from_terms(terms)
    }

    /// Product of sizes; `None` on overflow.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        dims.into_iter().try_fold(Self::Int(1), |product, d| product.mul(d))
    }

    /// The value with `value(symbol)` put in for each symbol.
    pub fn eval(&self, mut value: impl FnMut(&str) -> Option<i64>) -> Option<i64> {
        match self {
            Self::Int(i) => Some(*i),
            Self::Poly(terms) => terms.iter().try_fold(0i64, |sum, term| {
                let mut product = term.coefficient;
                for factor in &term.factors {
                    product = product.checked_mul(value(factor)?)?;
                }
                sum.checked_add(product)
            }),
        }
    }

    /// The symbols it is made of.
    pub fn symbols(&self) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = self.terms().into_iter().flat_map(|t| t.factors).collect();
        symbols.sort();
        symbols.dedup();
        symbols
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match self {
            Self::Int(i) => return write!(f, "{i}"),
            Self::Poly(terms) => terms,
        };
        for (i, term) in terms.iter().rev().enumerate() {
            let sign = if term.coefficient < 0 { "-" } else { "+" };
            match (i, sign) {
                (0, "-") => write!(f, "-")?,
                (0, _) => {}
                _ => write!(f, " {sign} ")?,
            }
            let magnitude = term.coefficient.unsigned_abs();
            if magnitude != 1 || term.factors.is_empty() {
                write!(f, "{magnitude}")?;
                if !term.factors.is_empty() {
                    write!(f, "*")?;
                }
            }
            write!(f, "{}", term.factors.join("*"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The elements of a small integer tensor, some of them perhaps symbolic or unknown: what shape arithmetic
/// computes with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ints {
    /// `[]` for a scalar.
    pub shape: Vec<usize>,
    /// Row major; `None` is unknown.
    pub values: Vec<Option<Dim>>,
}

impl Ints {
    /// All elements, where all are known integers.
    pub fn known(&self) -> Option<Vec<i64>> {
        self.values.iter().map(|v| v.as_ref()?.int()).collect()
    }
}

/// A shape as text: `[batch, 197, 384]`.
pub fn shape_text(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_exact() {
        let b = Dim::symbol("batch");
        let windows = b.mul(&64.into()).unwrap();
        assert_eq!(windows.to_string(), "64*batch");
        assert_eq!(windows.div_exact(&64.into()), Some(b.clone()));
        assert_eq!(windows.div_exact(&b), Some(64.into()));
        assert_eq!(windows.div_exact(&48.into()), None);
        assert_eq!(windows.sub(&windows), Some(0.into()));
        let sum = windows.add(&3.into()).unwrap();
        assert_eq!(sum.to_string(), "64*batch + 3");
        assert_eq!(sum.div_exact(&64.into()), None);
        assert_eq!(sum.eval(|_| Some(2)), Some(131));
        assert_eq!(b.mul(&b).unwrap().to_string(), "batch*batch");
    }

    #[test]
    fn overflow_and_zero_divisors_are_refused() {
        let big = Dim::Int(i64::MAX);
        assert_eq!(big.add(&1.into()), None);
        assert_eq!(big.mul(&2.into()), None);
        assert_eq!(Dim::Int(1).div_exact(&0.into()), None);
        assert_eq!(Dim::Int(i64::MIN).div_exact(&Dim::Int(-1)), None);
        assert_eq!(Dim::symbol("n").div_exact(&0.into()), None);
    }
}
