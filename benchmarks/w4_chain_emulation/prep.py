import re
from pathlib import Path
exec(open('/tmp/w4emu4/prep.py').read().split("for f in")[0].replace("Path('w4_decode_ptx.cuh').write_text(ptx)","Path('/tmp/w4emu6/w4_decode_ptx.cuh').write_text(ptx)"))
for f in ('w4_chain.cu','w4_chain_x.cuh'):
    s=(Path('/tmp/chain')/f).read_text()
    s=re.sub(r'asm volatile\("st.shared.s32[^;]*;"[^;]*;','memcpy(shared_at(address), &value, 4);',s)
    s=re.sub(r'asm volatile\("ld.shared.s32[^;]*;"[^;]*;','memcpy(&value, shared_at(address), 4);',s)
    s=re.sub(r'asm volatile\("ld.acquire[^;]*;"[^;]*;','yield(); value = *address;',s)
    s=re.sub(r'asm volatile\("setmaxnreg[^;]*;"[^;]*;','',s)
    s=re.sub(r'asm\("fma.rn.bf16x2[^;]*;"[^;]*;','d = bf16_of(of_bf16(pair&0xffff)*0x1p64f) | bf16_of(of_bf16(pair>>16)*0x1p64f)<<16;',s)
    s=re.sub(r'__launch_bounds__\([^)]*\)','',s)
    s=s.replace('extern __shared__ __align__(128) unsigned char shared_memory[];','static unsigned char* shared_memory = nullptr;')
    assert 'asm' not in s, s[s.index('asm')-50:][:200]
    Path('/tmp/w4emu6/'+f).write_text(s)
