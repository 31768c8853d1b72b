/* Virtual machines of the kernel (/dev/kvm): ioctls with struct layouts, and the page that a processor shares with the kernel,
 * neither of which Swift can express.
 *
 * Invariants:
 * - Every call that can fail returns a negative errno value; calls interrupted by a signal are repeated here, except
 *   ck_processor_run, whose purpose it is to be interrupted.
 * - On machines other than x86-64 everything here answers -ENOSYS.
 */
#ifndef CKVM_H
#define CKVM_H

#include "ckvm_machine.h"
#include "ckvm_processor.h"
#include "ckvm_state.h"

#endif
