//! The syntax tree of a template: statements and expressions.

use std::sync::Arc;

/// A name in the template.
pub(crate) type Name = Arc<str>;

/// An expression and its line.
#[derive(Debug)]
pub(crate) struct Expr {
    pub(crate) kind: ExprKind,
    pub(crate) line: u32,
}

#[derive(Debug)]
pub(crate) enum ExprKind {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// `object.name`
    Attribute(Box<Expr>, Name),
    /// `object[index]`
    Item(Box<Expr>, Box<Expr>),
    /// `object[start:stop:step]`
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Arguments),
    /// Without an operand in `{% filter %}` and `{% set %}` blocks.
    Filter(Option<Box<Expr>>, Name, Arguments),
    Test(Box<Expr>, Name, Arguments),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    /// `a < b <= c`: each operator with its right side.
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// `then if condition else otherwise`
    Condition {
        condition: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

/// The unevaluated arguments of a call.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) positional: Vec<Expr>,
    pub(crate) named: Vec<(Name, Expr)>,
    /// `*list`
    pub(crate) more_positional: Option<Box<Expr>>,
    /// `**map`
    pub(crate) more_named: Option<Box<Expr>>,
}

/// The target of an assignment.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Name),
    Tuple(Vec<Target>),
    /// `namespace.attribute`
    Attribute(Name, Name),
}

#[derive(Debug)]
pub(crate) enum Statement {
    Text(Arc<str>),
    Print(Expr),
    If {
        /// Conditions with their bodies, in order.
        branches: Vec<(Expr, Block)>,
        otherwise: Block,
    },
    For(Arc<For>),
    Set(Target, Expr),
    /// `{% set target | filters %}…{% endset %}`
    SetBlock {
        target: Target,
        filter: Option<Expr>,
        body: Block,
    },
    Macro(Arc<Macro>),
    /// `{% call(parameters) call %}…{% endcall %}`; the body is a macro without a name.
    CallBlock {
        callee: Expr,
        arguments: Arguments,
        body: Arc<Macro>,
    },
    FilterBlock {
        filter: Expr,
        body: Block,
    },
    With {
        assignments: Vec<(Target, Expr)>,
        body: Block,
    },
    /// `{% generation %}` and `{% block %}`: a body with its own scope.
    Scope(Block),
    Break,
    Continue,
}

pub(crate) type Block = Vec<Statement>;

#[derive(Debug)]
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) iterable: Expr,
    pub(crate) condition: Option<Expr>,
    pub(crate) body: Block,
    pub(crate) otherwise: Block,
    pub(crate) is_recursive: bool,
    /// Whether the body uses `loop`.
    pub(crate) uses_loop: bool,
}

#[derive(Debug)]
pub(crate) struct Macro {
    pub(crate) name: Name,
    /// The last parameters may have defaults.
    pub(crate) parameters: Vec<(Name, Option<Expr>)>,
    pub(crate) body: Block,
    /// Whether the body uses `varargs`, `kwargs`, `caller`: only then the macro accepts such
    /// arguments.
    pub(crate) takes_varargs: bool,
    pub(crate) takes_kwargs: bool,
    pub(crate) takes_caller: bool,
}
