"""Classes that JAX carries, and objects that it does not know."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from memattn_jax.pytree import as_arrays, as_pytree, pytree, static


@pytree
class One:
    number: float = 1.0
    name: str = static(default="a")


@pytree
class Other:
    number: float = 1.0
    name: str = static(default="a")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Registered:
    number: float = 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AlsoRegistered:
    number: float = 1.0


class Plain:
    number = 3.0

    def __call__(self, x):
        return x + self.number


def same(a, b) -> bool:
    return jax.tree.structure(as_pytree(a)) == jax.tree.structure(as_pytree(b))


def test_another_class_or_static_value_is_another_program():
    """Of classes registered elsewhere too, which JAX itself does not tell apart."""
    assert same(One(1.0), One(2.0))
    assert not same(One(), One(name="b"))
    assert not same(One(), Other())
    assert same(Registered(1.0), Registered(2.0))
    assert not same(Registered(), AlsoRegistered())


def test_a_static_list_is_the_tuple_of_its_values():
    given = One(name=["a", "b"])
    assert same(given, One(name=("a", "b")))
    assert jax.jit(lambda one: one)(given).name == ("a", "b")


class Derived(One):
    """Undecorated: what it compares by knows nothing of its own attributes."""

    def __init__(self, own: float):
        object.__setattr__(self, "own", own)


class Compared(Derived):
    def __eq__(self, other):
        return self.own == other.own

    def __hash__(self):
        return hash(self.own)


def test_an_undecorated_subclass_is_another_program_each_time():
    """Unless it can be compared; also as a static part of another."""
    one = Derived(1.0)
    assert one == Derived(2.0)
    assert same(one, one)
    assert not same(one, Derived(2.0))
    assert not same(One(name=one), One(name=Derived(2.0)))
    assert same(Compared(1.0), Compared(1.0))
    assert not same(Compared(1.0), Compared(2.0))
    (_, tree) = jax.tree.flatten(as_pytree(one))
    assert jax.tree.unflatten(tree, ()).value is one


def test_numbers_are_leaves_by_name():
    ((path, leaf),) = jax.tree_util.tree_leaves_with_path(One(2.0))
    assert (jax.tree_util.keystr(path), leaf) == (".number", 2.0)
    assert jax.tree.map(lambda x: 2 * x, One(2.0)) == One(4.0)
    assert as_arrays(One(2)).number.dtype == jnp.int32
    with pytest.raises(dataclasses.FrozenInstanceError):
        One().number = 2.0


def test_what_jax_does_not_know_passes_through_a_program():
    plain, function = Plain(), jnp.sin
    run = jax.jit(lambda f, x: (f(x), getattr(f, "number", 0.0)))
    assert run(as_pytree(plain), 1.0) == (4.0, 3.0)
    assert run(as_pytree(function), 0.0) == (0.0, 0.0)
    assert as_pytree(as_pytree(plain)) == as_pytree(plain)
