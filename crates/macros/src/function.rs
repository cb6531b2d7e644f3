//! A function under an attribute: its handle, its arguments, and what of them can be borrowed.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::visit_mut::{self, VisitMut};
use syn::{
    Attribute, Expr, FnArg, Lifetime, Pat, PatIdent, Receiver, ReturnType, Type, TypeImplTrait,
    TypeReference,
};

use crate::options::Problems;

/// A name that an argument's pattern binds.
pub(crate) struct Binding {
    pub(crate) name: Ident,
    pub(crate) mutable: bool,
}

/// An argument other than the handle and the receiver.
pub(crate) struct Argument {
    pub(crate) bindings: Vec<Binding>,
    /// Whether the pattern is a name and nothing else.
    pub(crate) is_name: bool,
    pub(crate) pattern: Span,
    pub(crate) ty: Type,
}

/// How the function gets at its [`UltraPerf`].
pub(crate) enum Handle {
    /// A parameter, by reference or by value.
    Parameter { name: Ident, by_reference: bool },
    /// `perf = ..`
    Expression(Expr),
}

impl Handle {
    /// An expression of type `&UltraPerf`.
    pub(crate) fn borrowed(&self) -> TokenStream {
        match self {
            Self::Parameter { name, by_reference: true } => quote!(#name),
            Self::Parameter { name, by_reference: false } => quote!(&#name),
            Self::Expression(expr) => quote!(&(#expr)),
        }
    }
}

/// What an attribute stands on.
pub(crate) struct Function {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: syn::Visibility,
    /// The signature, without `mut` in its patterns: the body binds its own.
    pub(crate) signature: syn::Signature,
    pub(crate) body: syn::Block,
    pub(crate) receiver: Option<Receiver>,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) handle: Option<Handle>,
    /// What it returns, `()` where it says nothing.
    pub(crate) output: Type,
}

impl Function {
    /// Takes a function apart.
    pub(crate) fn read(
        item: TokenStream,
        attribute: &str,
        perf: Option<&Expr>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let item: syn::ItemFn = match syn::parse2(item) {
            Ok(item) => item,
            Err(error) => {
                let message = format!("`{attribute}` stands on a function with a body");
                let mut told = syn::Error::new(error.span(), message);
                told.combine(error);
                problems.add(told);
                return None;
            }
        };
        let syn::ItemFn { attrs, vis, mut sig, block } = item;
        if let Some(constant) = &sig.constness {
            problems
                .at(constant.span(), "a `const fn` has no run time in which to look anything up");
        }
        if let Some(variadic) = &sig.variadic {
            problems.at(variadic.span(), "arguments without names cannot be told apart");
        }
        let mut receiver = None;
        let mut arguments = Vec::new();
        let mut handle: Option<Handle> = perf.cloned().map(Handle::Expression);
        for input in &mut sig.inputs {
            let typed = match input {
                FnArg::Receiver(it) => {
                    receiver = Some(it.clone());
                    continue;
                }
                FnArg::Typed(typed) => typed,
            };
            if let Some(found) = handle_of(&typed.pat, &typed.ty) {
                match (&handle, perf) {
                    (None, _) => handle = Some(found),
                    // `perf = ..` says which; the other is one all the same, and no part of a key.
                    (Some(_), Some(_)) => {}
                    (Some(_), None) => {
                        let message = "a second handle: say which one with `perf = ..`";
                        problems.at(typed.span(), message);
                    }
                }
                continue;
            }
            let mut names = Names::default();
            names.visit_pat(&typed.pat);
            arguments.push(Argument {
                bindings: names.0,
                is_name: matches!(
                    &*typed.pat,
                    Pat::Ident(PatIdent { subpat: None, by_ref: None, .. })
                ),
                pattern: typed.pat.span(),
                ty: (*typed.ty).clone(),
            });
            WithoutMut.visit_pat_mut(&mut typed.pat);
        }
        if handle.is_none() {
            let message = format!(
                "`{attribute}` finds no handle: give `{}` a parameter of type `&UltraPerf`, or say \
                 where it is with `perf = ..`",
                sig.ident
            );
            problems.at(sig.ident.span(), message);
        }
        let output = match &sig.output {
            ReturnType::Default => syn::parse_quote!(()),
            ReturnType::Type(_, ty) => (**ty).clone(),
        };
        Some(Self {
            attributes: attrs,
            visibility: vis,
            signature: sig,
            body: *block,
            receiver,
            arguments,
            handle,
            output,
        })
    }

    pub(crate) fn is_async(&self) -> bool {
        self.signature.asyncness.is_some()
    }

    /// The type of the result, `_` where it has no name.
    pub(crate) fn named_output(&self) -> TokenStream {
        let output = &self.output;
        if impl_trait_in(output).is_some() { quote!(_) } else { quote!(#output) }
    }

    /// Every name that the arguments bind.
    pub(crate) fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.arguments.iter().flat_map(|argument| &argument.bindings)
    }

    /// `let mut name = name;` for the arguments that the body may change.
    pub(crate) fn mutable_again(&self) -> TokenStream {
        let names = self.bindings().filter(|it| it.mutable).map(|it| &it.name);
        quote!(#(let mut #names = #names;)*)
    }

    /// An expression that names this instance of a generic function, the same for no other one.
    pub(crate) fn instance(&self, krate: &syn::Path) -> TokenStream {
        let mut parts: Vec<TokenStream> = Vec::new();
        for parameter in self.signature.generics.type_params() {
            let name = &parameter.ident;
            parts.push(quote!(::core::marker::PhantomData::<#name>));
        }
        for parameter in self.signature.generics.const_params() {
            let (name, ty) = (&parameter.ident, &parameter.ty);
            parts.push(quote!({
                struct Constant<const VALUE: #ty>;
                ::core::marker::PhantomData::<Constant<#name>>
            }));
        }
        for argument in &self.arguments {
            let Some(binding) = argument.bindings.first().filter(|_| argument.is_name) else {
                continue;
            };
            if impl_trait_in(&argument.ty).is_some() {
                let name = &binding.name;
                parts.push(quote!(#krate::call::marker(&#name)));
            }
        }
        let owned = self.receiver.is_some() || self.names_self();
        match (owned, parts.is_empty()) {
            (false, true) => return quote!(""),
            (true, true) => return quote!(#krate::call::owner::<Self>()),
            (true, false) => parts.push(quote!(::core::marker::PhantomData::<Self>)),
            (false, false) => {}
        }
        quote!(#krate::call::instance((#(#parts,)*)))
    }

    /// Whether the type that the function belongs to is named in it.
    fn names_self(&self) -> bool {
        fn within(tokens: TokenStream) -> bool {
            tokens.into_iter().any(|token| match token {
                TokenTree::Ident(name) => name == "Self",
                TokenTree::Group(group) => within(group.stream()),
                _ => false,
            })
        }
        within(self.signature.to_token_stream()) || within(self.body.to_token_stream())
    }

    /// Whether everything about the function is known without an instance of it.
    pub(crate) fn is_plain(&self) -> bool {
        self.receiver.is_none()
            && self.signature.generics.type_params().next().is_none()
            && self.signature.generics.const_params().next().is_none()
            && !self.arguments.iter().any(|argument| impl_trait_in(&argument.ty).is_some())
    }
}

/// The handle, if the parameter is one: `UltraPerf` or `&UltraPerf`, by whatever path.
fn handle_of(pattern: &Pat, ty: &Type) -> Option<Handle> {
    let Pat::Ident(PatIdent { ident, subpat: None, .. }) = pattern else { return None };
    let (ty, by_reference) = match ty {
        Type::Reference(TypeReference { elem, mutability: None, .. }) => (&**elem, true),
        ty => (ty, false),
    };
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last()?;
    (last.ident == "UltraPerf" && last.arguments.is_none())
        .then(|| Handle::Parameter { name: ident.clone(), by_reference })
}

#[derive(Default)]
struct Names(Vec<Binding>);

impl Visit<'_> for Names {
    fn visit_pat_ident(&mut self, pattern: &PatIdent) {
        let mutable = pattern.mutability.is_some();
        self.0.push(Binding { name: pattern.ident.clone(), mutable });
        visit::visit_pat_ident(self, pattern);
    }
}

struct WithoutMut;

impl VisitMut for WithoutMut {
    fn visit_pat_ident_mut(&mut self, pattern: &mut PatIdent) {
        if pattern.by_ref.is_none() {
            pattern.mutability = None;
        }
        visit_mut::visit_pat_ident_mut(self, pattern);
    }
}

/// The first `impl Trait` of a type.
pub(crate) fn impl_trait_in(ty: &Type) -> Option<Span> {
    struct Found(Option<Span>);
    impl Visit<'_> for Found {
        fn visit_type_impl_trait(&mut self, it: &TypeImplTrait) {
            self.0.get_or_insert(it.span());
        }
    }
    let mut found = Found(None);
    found.visit_type(ty);
    found.0
}

/// The first borrow of a type: a reference or a lifetime that is not `'static`.
pub(crate) fn borrow_in(ty: &Type) -> Option<Span> {
    struct Found(Option<Span>);
    impl Visit<'_> for Found {
        fn visit_type_reference(&mut self, it: &TypeReference) {
            if it.lifetime.as_ref().is_none_or(|lifetime| lifetime.ident != "static") {
                self.0.get_or_insert(it.span());
            }
            self.visit_type(&it.elem);
        }
        fn visit_lifetime(&mut self, it: &Lifetime) {
            if it.ident != "static" {
                self.0.get_or_insert(it.span());
            }
        }
        // Borrows of a function's own arguments are nobody else's.
        fn visit_type_bare_fn(&mut self, _: &syn::TypeBareFn) {}
        fn visit_parenthesized_generic_arguments(
            &mut self,
            _: &syn::ParenthesizedGenericArguments,
        ) {
        }
    }
    let mut found = Found(None);
    found.visit_type(ty);
    found.0
}

/// Every `.await` of a block that belongs to the block itself.
pub(crate) fn awaits_in(block: &syn::Block) -> Vec<Span> {
    struct Found(Vec<Span>);
    impl Visit<'_> for Found {
        fn visit_expr_await(&mut self, it: &syn::ExprAwait) {
            self.0.push(it.await_token.span);
            visit::visit_expr_await(self, it);
        }
        fn visit_expr_async(&mut self, _: &syn::ExprAsync) {}
        fn visit_expr_closure(&mut self, it: &syn::ExprClosure) {
            if it.asyncness.is_none() {
                visit::visit_expr_closure(self, it);
            }
        }
        fn visit_item(&mut self, _: &syn::Item) {}
    }
    let mut found = Found(Vec::new());
    found.visit_block(block);
    found.0
}

/// The name of the hidden function beside a cached one, through which its cache is found.
pub(crate) fn companion(function: &Ident) -> Ident {
    format_ident!("__ultra_perf_cache_of_{}", function, span = function.span())
}

/// The item as it was, for a function that does not expand: the compiler then reports no more than what
/// is wrong with the attribute.
pub(crate) fn unchanged(item: &TokenStream, errors: &syn::Error) -> TokenStream {
    let errors = errors.to_compile_error();
    let item = item.to_token_stream();
    quote!(#[allow(unused_variables)] #item #errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borrows_are_found_wherever_they_are() {
        for (text, borrows) in [
            ("u64", false),
            ("Vec<String>", false),
            ("&'static str", false),
            ("Cow<'static, str>", false),
            ("Box<dyn Fn(&str) -> bool>", false),
            ("&str", true),
            ("Option<&str>", true),
            ("Cow<'_, str>", true),
            ("&'a [u8]", true),
        ] {
            let ty = syn::parse_str(text).expect("a type");
            assert_eq!(borrow_in(&ty).is_some(), borrows, "{text}");
        }
    }

    #[test]
    fn awaits_of_inner_blocks_are_their_own() {
        let block: syn::Block = syn::parse_quote!({
            let later = async { one().await };
            two().await;
            let closure = || three(four().await);
            async fn inner() {
                five().await
            }
        });
        assert_eq!(awaits_in(&block).len(), 2);
    }
}
