import numpy as np

from metasae.measures.firing.firings import document_blocks


def test_equal_documents_are_shared_out_evenly():
    documents = np.repeat(np.arange(16), 5)
    assert document_blocks(documents, 4).tolist() == np.repeat(np.arange(4), 20).tolist()


def test_a_document_is_never_cut_and_blocks_have_no_gaps():
    generator = np.random.default_rng(0)
    documents = np.repeat(generator.permutation(300), generator.integers(1, 400, 300))
    blocks = document_blocks(documents, 8)
    assert sorted(set(blocks.tolist())) == list(range(8))
    assert (np.diff(blocks) >= 0).all()
    for document in set(documents.tolist()):
        assert len(set(blocks[documents == document].tolist())) == 1
    sizes = np.bincount(blocks)
    assert sizes.max() < 1.3 * sizes.min()


def test_fewer_documents_than_blocks():
    # one long document swallows several shares; the numbering closes up
    assert document_blocks(np.array([3] * 90 + [4] * 5 + [9] * 5), 8).tolist() == [0] * 90 + [1] * 10
    assert document_blocks(np.array([7]), 8).tolist() == [0]


def test_no_tokens():
    assert document_blocks(np.zeros(0, np.int32)).shape == (0,)
