"""Rewrites a parsed template so that what it does is paid for; the prices are in ``template_sandbox``."""

from __future__ import annotations

from typing import Any, TypeVar

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

Body = TypeVar("Body", nodes.Macro, nodes.CallBlock, nodes.Block)


class Guard(NodeTransformer):
    """Rewrites a parsed template so that loops, literals, comparisons and joins pass through the guards."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Loops pay for every item by the size of their body; recursive ones as they go, too."""
        cost = self._cost(node)
        self.generic_visit(node)
        if node.recursive:
            node.body.insert(0, self._step(node, cost))
        node.iter = self._call("guard_loop", node.iter, nodes.Const(cost))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        """What can be called pays for its body each time, however little of it is loops and output."""
        return self._pay_on_entry(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        """As a macro: it is called as ``caller()``."""
        return self._pay_on_entry(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Block:
        """As a macro: it is called as ``self.name()``."""
        return self._pay_on_entry(node)

    def _pay_on_entry(self, node: Body) -> Body:
        step = self._step(node, self._cost(node))
        self.generic_visit(node)
        node.body.insert(0, step)
        return node

    @staticmethod
    def _cost(node: nodes.Node) -> int:
        """The price of running through a body once: its literal text, its statements and the nodes to evaluate."""
        literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        return 4 + literal // 16 + sum(1 for _ in node.find_all((nodes.Expr, nodes.Stmt))) // 2

    @classmethod
    def _step(cls, node: nodes.Node, cost: int) -> nodes.ExprStmt:
        line = node.lineno
        return nodes.ExprStmt(cls._call("guard_step", nodes.Const(cost, lineno=line)), lineno=line)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        """Both sides of a comparison are walked by it."""
        self.generic_visit(node)
        node.expr = self._guard(node.expr)
        for operand in node.ops:
            operand.expr = self._guard(operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        """What ``~`` joins is copied."""
        self.generic_visit(node)
        node.nodes = [self._guard(child) for child in node.nodes]
        return node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        """A literal may hold large values many times."""
        self.generic_visit(node)
        return self._guard(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        """As a list, unless it is what a ``for`` or ``set`` assigns to."""
        self.generic_visit(node)
        return self._guard(node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        """As a list."""
        self.generic_visit(node)
        return self._guard(node)

    def _guard(self, node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else self._call("guard_value", node)

    @staticmethod
    def _call(name: str, *args: Any) -> nodes.Expr:
        line = args[0].lineno
        target = nodes.EnvironmentAttribute(name, lineno=line)
        return nodes.Call(target, list(args), [], None, None, lineno=line)
