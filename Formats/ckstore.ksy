# The structures of FORMAT.md, version 1. Kaitai Struct only describes bytes: it does not choose the newest slot, and
# checks no checksum and no range, and does not follow forwarding tables (7.4): of a store that has the feature
# `forwarding`, `pointer::block` of kinds 1 to 5 may be something else by now. Offsets of blocks follow from the geometry in slot 1 of ring A (generation 1 lies
# there, then 17, 33 ...), of which all but the number of segments is the same in every slot.
meta:
  id: ckstore
  title: ckstore checkpoint store, format version 1
  file-extension: ckstore
  ks-version: 0.9
  encoding: UTF-8
  endian: le
doc-ref: FORMAT.md
instances:
  geometry:
    doc: Section 3.1; any valid slot would do.
    pos: 4096
    size: 4096
    type: slot
  ring_a:
    doc: Section 1.
    pos: 0
    size: 4096
    type: slot
    repeat: expr
    repeat-expr: 16
  ring_b:
    pos: geometry.state.ofs_twin
    size: 4096
    type: slot
    repeat: expr
    repeat-expr: 16
  segments:
    pos: geometry.state.ofs_data
    type: segment(_index)
    repeat: expr
    repeat-expr: geometry.state.num_segments
enums:
  block_magic:
    0x4e524b43: run                   # "CKRN"
    0x464c4b43: full_leaf             # "CKLF"
    0x4c504b43: patch_leaf            # "CKPL"
    0x4e494b43: inner_node            # "CKIN"
    0x50434b43: checkpoint_record     # "CKCP"
    0x54424b43: catalog_node          # "CKBT"
    0x4c544b43: table_leaf            # "CKTL"
    0x49544b43: table_inner_node      # "CKTI"
    0x47534b43: segment_header        # "CKSG"
    0x4d434b43: commit_record         # "CKCM"
    0x54464b43: forwarding_table      # "CKFT"
  block_kind:
    0: none
    1: run
    2: full_leaf
    3: patch_leaf
    4: inner_node
    5: checkpoint_record
    6: catalog_node
    7: table_leaf
    8: table_inner_node
    9: segment_header
    10: commit_record
    11: forwarding_table
  catalog_tree:
    1: by_id
    2: by_name
    3: lineage
    4: forwarding
  node_state:
    1: living
    2: tombstone
  slot_kind:
    1: commit
    2: poisoned
  codec:
    0: raw
    1: lz4
  region_kind:
    1: memory
    2: disk
    3: state
  segment_class:
    0: never_used
    1: runs
    2: index
    3: catalog
  segment_state:
    0: free
    1: used
  feature_mask:
    1: incompatible
    2: read_only_compatible
    3: compatible
types:
  slot:
    doc: Section 3.1. A slot that was never written is all zero.
    seq:
      - id: magic
        type: u8
      - id: state
        type: slot_state
        if: has_magic
    instances:
      has_magic:
        doc: '"CKSTORE1"'
        value: magic == 0x3145524f54534b43
  slot_state:
    seq:
      - id: checksum
        size: 16
        doc: H128 of bytes [24, 4096).
      - id: slot_index
        type: u2
      - id: twin
        type: u1
      - id: kind
        type: u1
        enum: slot_kind
      - id: format_version
        type: u4
      - id: store_uuid
        size: 16
      - id: generation
        type: u8
      - id: incompat_features
        type: u8
      - id: read_only_compat_features
        type: u8
      - id: compat_features
        type: u8
      - id: len_segment
        type: u4
      - id: commit_unit
        type: u4
      - id: num_segments
        type: u4
      - id: table_depth
        type: u1
      - id: reserved_1
        size: 3
      - id: ofs_twin
        type: u8
      - id: ofs_data
        type: u8
      - id: page_hash_seed
        type: u8
      - id: commit_time_nanoseconds
        type: u8
      - id: catalog_by_id
        type: pointer
      - id: catalog_by_name
        type: pointer
      - id: segment_table
        type: pointer
      - id: forwarding
        type: pointer
      - id: lineage
        type: pointer
      - id: num_checkpoints
        type: u8
      - id: num_used_segments
        type: u4
      - id: catalog_segment
        type: u4
        doc: 0xFFFFFFFF is "nowhere yet".
      - id: allocation_hint
        type: u4
      - id: num_reserve_segments
        type: u4
      - id: erase_unit
        type: u8
      - id: base_generation
        type: u8
      - id: reserved_2
        size: 144
      - id: num_feature_names
        type: u2
      - id: reserved_3
        size: 2
      - id: feature_names
        type: feature_name
        repeat: expr
        repeat-expr: num_feature_names
  feature_name:
    seq:
      - id: mask
        type: u1
        enum: feature_mask
      - id: bit
        type: u1
      - id: len_name
        type: u1
      - id: name
        type: str
        size: len_name
        encoding: ASCII
      - id: padding
        size: 29 - len_name
  pointer:
    doc: Section 2.2.
    seq:
      - id: segment
        type: u4
      - id: ofs_block
        type: u4
      - id: len_stored
        type: u4
      - id: kind
        type: u1
        enum: block_kind
      - id: codec
        type: u1
        enum: codec
      - id: key_id
        type: u2
      - id: birth
        type: u8
      - id: checksum
        size: 16
    instances:
      is_null:
        value: len_stored == 0
      block:
        io: _root._io
        pos: _root.geometry.state.ofs_data + _root.geometry.state.len_segment * segment + ofs_block
        size: len_stored
        type: block
        if: not is_null
  block:
    doc: Section 2.3.
    seq:
      - id: checksum
        size: 16
        doc: H128 of bytes [16, len_stored) of the block.
      - id: magic
        type: u4
        enum: block_magic
      - id: len_stored
        type: u4
      - id: birth
        type: u8
      - id: body
        type:
          switch-on: magic
          cases:
            'block_magic::run': run
            'block_magic::full_leaf': full_leaf
            'block_magic::patch_leaf': patch_leaf
            'block_magic::inner_node': inner_node
            'block_magic::checkpoint_record': checkpoint_record
            'block_magic::catalog_node': catalog_node
            'block_magic::table_leaf': table_leaf
            'block_magic::table_inner_node': table_inner_node
            'block_magic::segment_header': segment_header
            'block_magic::commit_record': commit_record
            'block_magic::forwarding_table': forwarding_table
  segment:
    doc: Section 4. Only its header has a fixed place.
    params:
      - id: index
        type: u4
    instances:
      header:
        io: _root._io
        pos: _root.geometry.state.ofs_data + _root.geometry.state.len_segment * index
        size: 128
        type: block
        doc: Meaningless when the segment was never used.
  segment_header:
    doc: Section 4.1.
    seq:
      - id: store_uuid
        size: 16
      - id: segment
        type: u4
      - id: segment_class
        type: u1
        enum: segment_class
      - id: reserved_1
        size: 3
      - id: base_generation
        type: u8
      - id: len_segment
        type: u4
      - id: reserved_2
        size: 60
  commit_record:
    doc: Section 4.2. Behind moved blocks the pointer is null and there is no name.
    seq:
      - id: checkpoint_record
        type: pointer
      - id: segment
        type: u4
      - id: ofs_first
        type: u4
      - id: ofs_end
        type: u4
      - id: len_name
        type: u2
      - id: reserved
        size: 2
      - id: name
        type: str
        size: len_name
  run:
    doc: Section 5.1.
    seq:
      - id: region_key
        type: u8
      - id: span_first_page
        type: u8
      - id: num_pages
        type: u1
      - id: codec
        type: u1
        enum: codec
      - id: key_id
        type: u2
      - id: reserved
        size: 4
      - id: pages
        type: u2
        repeat: expr
        repeat-expr: num_pages
      - id: padding
        size: (8 - num_pages * 2 % 8) % 8
      - id: payload
        size-eos: true
  full_leaf:
    doc: Section 5.2.
    seq:
      - id: region_key
        type: u8
      - id: span_first_page
        type: u8
      - id: num_runs
        type: u2
      - id: num_extents
        type: u2
      - id: num_hashes
        type: u2
      - id: reserved
        size: 2
      - id: runs
        type: pointer
        repeat: expr
        repeat-expr: num_runs
      - id: extents
        type: extent
        repeat: expr
        repeat-expr: num_extents
      - id: hashes
        size: 16
        repeat: expr
        repeat-expr: num_hashes
  extent:
    seq:
      - id: first_page
        type: u2
      - id: num_pages
        type: u1
      - id: page_offset
        type: u1
      - id: run_index
        type: u2
      - id: reserved
        size: 2
  patch_leaf:
    doc: Section 5.3.
    seq:
      - id: region_key
        type: u8
      - id: span_first_page
        type: u8
      - id: num_runs
        type: u2
      - id: num_entries
        type: u2
      - id: reserved
        size: 4
      - id: base
        type: pointer
      - id: runs
        type: pointer
        repeat: expr
        repeat-expr: num_runs
      - id: entries
        type: patch_entry
        repeat: expr
        repeat-expr: num_entries
  patch_entry:
    seq:
      - id: page
        type: u2
      - id: run_index
        type: u2
        doc: 0xFFFF means that the page is zero now.
      - id: page_offset
        type: u1
      - id: reserved
        size: 3
      - id: page_hash
        size: 16
  inner_node:
    doc: Section 5.4.
    seq:
      - id: region_key
        type: u8
      - id: first_page
        type: u8
      - id: level
        type: u1
      - id: reserved_1
        size: 1
      - id: num_children
        type: u2
      - id: reserved_2
        size: 4
      - id: present
        size: 16
        doc: Bit i is bit i mod 8 of byte i / 8, least significant first.
      - id: children
        type: pointer
        repeat: expr
        repeat-expr: num_children
  checkpoint_record:
    doc: Section 6.1.
    seq:
      - id: checkpoint_id
        type: u8
      - id: parent_id
        type: u8
      - id: created_nanoseconds
        type: u8
      - id: base_generation
        type: u8
      - id: len_name
        type: u2
      - id: num_labels
        type: u2
      - id: num_regions
        type: u4
      - id: num_new_pages
        type: u8
      - id: num_stored_bytes
        type: u8
      - id: group_id
        type: u8
      - id: name
        type: str
        size: len_name
      - id: labels
        type: label
        repeat: expr
        repeat-expr: num_labels
      - id: regions
        type: region
        repeat: expr
        repeat-expr: num_regions
  label:
    seq:
      - id: len_key
        type: u2
      - id: len_value
        type: u2
      - id: key
        type: str
        size: len_key
      - id: value
        type: str
        size: len_value
  region:
    seq:
      - id: len_name
        type: u2
      - id: kind
        type: u1
        enum: region_kind
      - id: depth
        type: u1
      - id: reserved
        size: 4
      - id: len_region
        type: u8
      - id: region_key
        type: u8
      - id: root
        type: pointer
      - id: num_stored_pages
        type: u8
      - id: num_new_pages
        type: u8
      - id: name
        type: str
        size: len_name
  catalog_node:
    doc: Section 6.2.
    seq:
      - id: tree
        type: u1
        enum: catalog_tree
      - id: level
        type: u1
      - id: num_entries
        type: u2
      - id: reserved
        size: 4
      - id: leaf_entries
        type: catalog_leaf_entry(tree.to_i)
        repeat: expr
        repeat-expr: num_entries
        if: level == 0
      - id: inner_entries
        type: catalog_inner_entry
        repeat: expr
        repeat-expr: num_entries
        if: level != 0
  catalog_leaf_entry:
    params:
      - id: tree
        type: u1
    seq:
      - id: len_key
        type: u2
      - id: len_value
        type: u2
      - id: key
        size: len_key
        doc: |
          Numbers in keys are big-endian. By id: the id. By name: the name. Lineage: see `sort`. Forwarding: segment u4, offset u4
          and birth u8 of the table's first entry.
      - id: value
        size: len_value
        type:
          switch-on: sort
          cases:
            1: catalog_value_by_id
            2: catalog_value_by_name
            4: pointer
            5: lineage_node
            6: lineage_edge
            7: catalog_value_by_name
    instances:
      sort:
        doc: |
          The tree, or, of the lineage, 5 for a node (key: its id, 8 zero bytes), 6 for an edge (key: parent's id, child's id), 7 for a
          reference (key: 8 zero bytes, the name; value: an id).
        value: 'tree != 3 ? tree : len_value == 0 ? 6 : len_value == 16 ? 5 : 7'
  catalog_inner_entry:
    seq:
      - id: len_key
        type: u2
      - id: reserved
        type: u2
      - id: key
        size: len_key
      - id: child
        type: pointer
  catalog_value_by_id:
    seq:
      - id: checkpoint_record
        type: pointer
      - id: generation
        type: u8
      - id: flags
        type: u4
      - id: reserved
        type: u4
  catalog_value_by_name:
    seq:
      - id: checkpoint_id
        type: u8
  lineage_node:
    doc: Section 6.3.
    seq:
      - id: parent_id
        type: u8
        doc: 0 is none.
      - id: state
        type: u1
        enum: node_state
      - id: reserved
        size: 7
  lineage_edge:
    doc: Section 6.3. All that it says is in its key.
    seq:
      - id: nothing
        size-eos: true
  forwarding_table:
    doc: Section 7.3.
    seq:
      - id: segment
        type: u4
        doc: Where the blocks were.
      - id: num_entries
        type: u4
      - id: entries
        type: forwarding_entry
        repeat: expr
        repeat-expr: num_entries
  forwarding_entry:
    seq:
      - id: ofs_block
        type: u4
        doc: Where the block was in its old segment.
      - id: new_segment
        type: u4
      - id: ofs_new_block
        type: u4
      - id: len_new_stored
        type: u4
      - id: birth
        type: u8
        doc: Of the old block and of the new one.
      - id: new_checksum
        size: 16
      - id: kind
        type: u1
        enum: block_kind
      - id: codec
        type: u1
        enum: codec
      - id: kept
        type: u2
        doc: Runs - bit i is set when page i of the old run is in the new one; else 1.
      - id: live
        type: u2
        doc: The bits of `kept` of pages that leaves may still list.
      - id: reserved
        size: 2
    instances:
      block:
        io: _root._io
        pos: _root.geometry.state.ofs_data + _root.geometry.state.len_segment * new_segment + ofs_new_block
        size: len_new_stored
        type: block
  table_leaf:
    doc: Section 7.2.
    seq:
      - id: first_segment
        type: u4
      - id: num_entries
        type: u2
      - id: reserved
        size: 10
      - id: entries
        type: table_entry
        repeat: expr
        repeat-expr: num_entries
  table_entry:
    doc: Section 7.1.
    seq:
      - id: state
        type: u1
        enum: segment_state
      - id: segment_class
        type: u1
        enum: segment_class
      - id: flags
        type: u2
      - id: len_committed
        type: u4
      - id: live
        type: u4
      - id: written
        type: u4
        doc: Reserved in stores of the draft.
      - id: birth
        type: u8
      - id: freed_generation
        type: u8
  table_inner_node:
    doc: Section 7.2.
    seq:
      - id: first_segment
        type: u4
      - id: level
        type: u1
      - id: reserved
        type: u1
      - id: num_children
        type: u2
      - id: present
        size: 8
      - id: children
        type: pointer
        repeat: expr
        repeat-expr: num_children
