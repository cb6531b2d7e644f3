//! A function under an attribute: its handle, its arguments, and what of them can be borrowed.

use proc_macro2::{Delimiter, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::visit_mut::{self, VisitMut};
use syn::{
    Attribute, Expr, FnArg, GenericArgument, Lifetime, Pat, PatIdent, PathArguments, Receiver,
    ReturnType, Token, Type, TypeImplTrait, TypeParamBound, TypeReference,
};

use crate::options::Problems;

/// A name that an argument's pattern binds.
pub(crate) struct Binding {
    pub(crate) name: Ident,
    pub(crate) mutable: bool,
    /// The conditions under which its argument is there.
    pub(crate) cfgs: Vec<Attribute>,
}

/// An argument other than the handle and the receiver.
pub(crate) struct Argument {
    pub(crate) bindings: Vec<Binding>,
    /// Whether the pattern is a name and nothing else.
    pub(crate) is_name: bool,
    pub(crate) pattern: Span,
    pub(crate) ty: Type,
    /// The conditions under which it is there.
    pub(crate) cfgs: Vec<Attribute>,
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
    /// The names of its parameters that are handles by value.
    pub(crate) own_handles: Vec<Ident>,
    /// What it returns, or the future that it returns, `()` where it says nothing.
    pub(crate) output: Type,
    /// How it makes the future that it returns, where it is not an `async fn` and its body is that future's.
    future: Option<Made>,
}

/// How a function makes the future that it returns, as `#[async_trait]` writes it.
#[derive(Clone, Copy, PartialEq)]
enum Made {
    /// `async move { .. }`
    Bare,
    /// `Box::pin(async move { .. })`
    Boxed,
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
        let mut own_handles = Vec::new();
        for input in &mut sig.inputs {
            let typed = match input {
                FnArg::Receiver(it) => {
                    receiver = Some(it.clone());
                    continue;
                }
                FnArg::Typed(typed) => typed,
            };
            if let Some(found) = handle_of(&typed.pat, &typed.ty) {
                if let Handle::Parameter { name, by_reference: false } = &found {
                    own_handles.push(name.clone());
                }
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
            let cfgs = conditions(&typed.attrs);
            let mut names = Names { found: Vec::new(), cfgs: &cfgs };
            names.visit_pat(&typed.pat);
            arguments.push(Argument {
                bindings: names.found,
                is_name: matches!(
                    &*typed.pat,
                    Pat::Ident(PatIdent { subpat: None, by_ref: None, .. })
                ),
                pattern: typed.pat.span(),
                ty: (*typed.ty).clone(),
                cfgs,
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
        let (output, body, future) = match future_in(&output) {
            Some(ended) => match future_of(&block) {
                Some((made, body)) if sig.asyncness.is_none() => (ended, body, Some(made)),
                _ => {
                    let message = format!(
                        "`{attribute}` would end before this future begins: write `async fn`, or let the \
                         body be `async move {{ .. }}` or `Box::pin(async move {{ .. }})` and nothing else"
                    );
                    problems.at(output.span(), message);
                    // As what it should be, so that nothing else is said about it.
                    (ended, *block, Some(Made::Boxed))
                }
            },
            None => (output, *block, None),
        };
        Some(Self {
            attributes: attrs,
            visibility: vis,
            signature: sig,
            body,
            receiver,
            arguments,
            handle,
            own_handles,
            output,
            future,
        })
    }

    /// Whether the body may wait.
    pub(crate) fn is_async(&self) -> bool {
        self.signature.asyncness.is_some() || self.future.is_some()
    }

    /// The function with another body: where it returns a future, that of the future.
    pub(crate) fn with_body(&self, body: &TokenStream) -> TokenStream {
        let Self { attributes, visibility, signature, .. } = self;
        let body = match self.future {
            None => quote!(#body),
            Some(Made::Bare) => quote!(async move { #body }),
            Some(Made::Boxed) => quote!(::std::boxed::Box::pin(async move { #body })),
        };
        quote! {
            #(#attributes)*
            #visibility #signature {
                #body
            }
        }
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
        let mutable = self.bindings().filter(|it| it.mutable).map(|it| {
            let Binding { name, cfgs, .. } = it;
            quote!(#(#cfgs)* let mut #name = #name;)
        });
        quote!(#(#mutable)*)
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
                let Binding { name, cfgs, .. } = binding;
                parts.push(quote!(#(#cfgs)* #krate::call::marker(&#name)));
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
        let mut found = NamesSelf(false);
        found.visit_signature(&self.signature);
        found.visit_block(&self.body);
        found.0
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

struct Names<'a> {
    found: Vec<Binding>,
    cfgs: &'a [Attribute],
}

impl Visit<'_> for Names<'_> {
    fn visit_pat_ident(&mut self, pattern: &PatIdent) {
        let mutable = pattern.mutability.is_some();
        let cfgs = self.cfgs.to_vec();
        self.found.push(Binding { name: pattern.ident.clone(), mutable, cfgs });
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

/// The attributes that say when something is there.
pub(crate) fn conditions(attributes: &[Attribute]) -> Vec<Attribute> {
    attributes.iter().filter(|it| it.path().is_ident("cfg")).cloned().collect()
}

/// Finds `Self` where it is the type that a function belongs to. An item inside has a `Self` of its own.
struct NamesSelf(bool);

impl NamesSelf {
    fn visit_tokens(&mut self, tokens: &TokenStream) {
        let mut in_item = false;
        for token in tokens.clone() {
            match token {
                TokenTree::Ident(name) if name == "Self" => self.0 |= !in_item,
                TokenTree::Ident(name) => {
                    in_item |= ["enum", "impl", "struct", "trait", "union"]
                        .iter()
                        .any(|item| name == item);
                }
                TokenTree::Group(group) => {
                    if !in_item {
                        self.visit_tokens(&group.stream());
                    }
                    in_item &= group.delimiter() != Delimiter::Brace;
                }
                TokenTree::Punct(mark) => in_item &= mark.as_char() != ';',
                TokenTree::Literal(_) => {}
            }
        }
    }
}

impl Visit<'_> for NamesSelf {
    fn visit_ident(&mut self, name: &Ident) {
        self.0 |= name == "Self";
    }
    fn visit_token_stream(&mut self, tokens: &TokenStream) {
        self.visit_tokens(tokens);
    }
    fn visit_item(&mut self, item: &syn::Item) {
        // What stands for an item may be statements as well.
        if let syn::Item::Macro(syn::ItemMacro { ident: None, mac, .. }) = item {
            self.visit_tokens(&mac.tokens);
        }
    }
}

/// What the future is of, if the type says that it is one.
fn future_in(ty: &Type) -> Option<Type> {
    let ended = |bounds: &Punctuated<TypeParamBound, Token![+]>| {
        bounds.iter().find_map(|bound| match bound {
            TypeParamBound::Trait(it) => {
                let last = it.path.segments.last().filter(|last| last.ident == "Future")?;
                let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
                arguments.args.iter().find_map(|argument| match argument {
                    GenericArgument::AssocType(it) if it.ident == "Output" => Some(it.ty.clone()),
                    _ => None,
                })
            }
            _ => None,
        })
    };
    let path = match ty {
        Type::ImplTrait(it) => return ended(&it.bounds),
        Type::TraitObject(it) => return ended(&it.bounds),
        Type::Paren(it) => return future_in(&it.elem),
        Type::Group(it) => return future_in(&it.elem),
        Type::Path(path) => path,
        _ => return None,
    };
    let last = path.path.segments.last()?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    let mut types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    });
    let first = types.next()?;
    if last.ident == "Pin" || last.ident == "Box" {
        future_in(first)
    } else if last.ident == "BoxFuture" || last.ident == "LocalBoxFuture" {
        Some(first.clone())
    } else {
        None
    }
}

/// How a block makes a future, and the body of that, if it does nothing else.
fn future_of(block: &syn::Block) -> Option<(Made, syn::Block)> {
    let [syn::Stmt::Expr(expr, None)] = &*block.stmts else { return None };
    let body = |expr: &Expr| match expr {
        Expr::Async(it) if it.capture.is_some() => {
            let mut body = it.block.clone();
            // It comes into another block, where the compiler may find its braces superfluous.
            let own = Span::mixed_site().located_at(body.brace_token.span.join());
            body.brace_token = syn::token::Brace(own);
            Some(body)
        }
        _ => None,
    };
    if let Some(body) = body(expr) {
        return Some((Made::Bare, body));
    }
    let Expr::Call(call) = expr else { return None };
    let Expr::Path(path) = &*call.func else { return None };
    let mut names = path.path.segments.iter().rev().map(|segment| &segment.ident);
    let is_pin = names.next().is_some_and(|it| it == "pin");
    let is_box = names.next().is_some_and(|it| it == "Box");
    let argument = call.args.first().filter(|_| is_pin && is_box && call.args.len() == 1)?;
    Some((Made::Boxed, body(argument)?))
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
    fn self_is_that_of_the_function_and_not_of_an_item_inside() {
        for (text, named) in [
            ("{ Self::new() }", true),
            ("{ let x: Vec<Self> = f(); }", true),
            ("{ println!(\"{}\", Self::NAME) }", true),
            ("{ vec![{ Self::new() }] }", true),
            ("{ items! { struct A; impl A { fn new() -> Self { A } } } Self::b() }", true),
            ("{ struct A; impl A { fn new() -> Self { Self } } A::new() }", false),
            ("{ items! { impl A { fn new() -> Self { Self } } } }", false),
            ("{ trait T: Sized { fn it(self) -> Self; } 1 }", false),
        ] {
            let block: syn::Block = syn::parse_str(text).expect("a block");
            let mut found = NamesSelf(false);
            found.visit_block(&block);
            assert_eq!(found.0, named, "{text}");
        }
    }

    #[test]
    fn futures_are_known_by_what_their_types_say() {
        for (text, of) in [
            ("impl Future<Output = u8> + Send", Some("u8")),
            ("impl Send + std::future::Future<Output = Result<u8, E>>", Some("Result<u8, E>")),
            ("Pin<Box<dyn Future<Output = u8> + Send + 'a>>", Some("u8")),
            ("core::pin::Pin<Box<(dyn Future<Output = u8>)>>", Some("u8")),
            ("BoxFuture<'static, Option<u8>>", Some("Option<u8>")),
            ("futures::future::LocalBoxFuture<'a, u8>", Some("u8")),
            ("Box<dyn Fn() -> u8>", None),
            ("impl Iterator<Item = u8>", None),
            ("Vec<u8>", None),
        ] {
            let ty = syn::parse_str(text).expect("a type");
            let of = of.map(|of| syn::parse_str::<Type>(of).expect("a type"));
            assert_eq!(future_in(&ty), of, "{text}");
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
