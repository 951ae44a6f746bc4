@echo off
rem LaFTer on several GPUs, and several machines, through torchrun: the same run as LaFTer.bat makes on one, to rounding.
rem Other modes are flags: --multi_layer_prompt, --direct_dualtask, ... --batch_size is that of all processes together.
rem It sets --resume auto alone; all else is as the data set's YAML and the defaults have it.
rem     scripts\LaFTer_MultiGPU.bat [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
rem     scripts\LaFTer_MultiGPU.bat emotion6 --root DATA --multi_layer_prompt --batch_size 200
rem torchrun's own flags are in TORCHRUN; without it, all GPUs of this machine. Two machines, the first is called alpha:
rem     set TORCHRUN=--nproc-per-node 4 --nnodes 2 --node-rank 0 --master-addr alpha
rem Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
rem relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
rem end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
setlocal
call "%~dp0setup_env.bat"
if %ERRORLEVEL% neq 0 exit /b 1
rem torch for Windows comes without libuv, which torchrun would ask for
set USE_LIBUV=0
set DATASET=emotion6
set "FIRST=%~1"
if defined FIRST if not "%FIRST:~0,1%"=="-" set DATASET=
if not defined TORCHRUN set TORCHRUN=--standalone --nproc-per-node gpu
call "%PY%" -m torch.distributed.run %TORCHRUN% "%PROJECT%\LaFTer.py" --resume auto --dataset-config-file %DATASET% %*
exit /b %ERRORLEVEL%
